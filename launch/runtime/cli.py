"""What every command shares: flags, exit codes, one line for the user's mistakes.

Exit codes: 0 done, 1 the run failed, 2 the user's input was wrong, 143 stopped by SIGTERM after saving.
"""

import errno
import importlib.util
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

import jax
from absl import flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

from rcg.errors import MismatchWarning, UserError

STOPPED = 143


# what XLA says when a collective's other side does not answer
LOST = re.compile(
    r"UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED|heartbeat|gloo|nccl|connection|peer|socket", re.I
)


# a folder that may not be written, a full disk; a file in a folder's place
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
NO_FOLDER = (errno.EEXIST, errno.ENOTDIR)


class RunError(RuntimeError):
    """The run failed for a reason we can name in one line: exit code 1, no traceback."""


def run(main: Callable[[list[str]], int | None]) -> None:
    """Runs a command's `main(argv)` and exits with its status."""
    absl_logging.set_verbosity(absl_logging.ERROR)  # orbax tells every file it touches
    warnings.showwarning = _show(warnings.showwarning)
    try:
        code = main(sys.argv) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except RunError as error:
        print(f"failed: {error}", file=sys.stderr)
        code = 1
    except OSError as error:
        if error.errno not in (*REFUSED, *NO_FOLDER) or not error.filename:
            raise
        wrong = error.errno in NO_FOLDER
        reason = "is there, and no folder" if wrong else error.strerror
        print(f"{'error' if wrong else 'failed'}: {error.filename}: {reason}", file=sys.stderr)
        code = 2 if wrong else 1
    except jax.errors.JaxRuntimeError as error:
        if not jax.distributed.is_initialized():
            raise
        if LOST.search(str(error)):
            reason = " ".join(str(error).split())[:300]
            print(f"failed: another process of this run may be gone ({reason})", file=sys.stderr)
        else:
            traceback.print_exc()
        code = 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.stdout.flush()
    sys.stderr.flush()
    # a run of several processes that ends early must not wait for the others to end well
    alone = not jax.distributed.is_initialized()
    os._exit(code) if code == STOPPED or (code and not alone) else sys.exit(code)


def _show(otherwise: Callable[..., None]) -> Callable[..., None]:
    """Shows our own warnings as one line, the others as before."""

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, MismatchWarning):
            print(f"warning: {message}", file=sys.stderr)
        else:
            otherwise(message, category, *where, **more)

    return show


def parse(argv: Sequence[str], define: Callable[[flags.FlagValues], Any], usage: str) -> flags.FlagValues:
    """Parses `argv` with the flags that `define` puts into a FlagValues of the command's own.

    Raises:
      UserError: an unknown flag, a wrong value, a config file or field that does not exist.
    """
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain's workers read absl's global flags
    values = flags.FlagValues()
    define(values)
    flags.DEFINE_bool("help", False, "show this text", short_name="h", flag_values=values)
    try:
        rest = values(list(argv))[1:]
    except (flags.Error, ValueError, TypeError, OSError, AttributeError, LookupError, ImportError) as error:
        raise UserError(_told(error)) from error
    if values.help:
        print(f"{usage}\n\n{values.get_help()}")
        sys.exit(0)
    if rest:
        raise UserError(f'"{rest[0]}" is not a flag; did you mean --{rest[0].lstrip("-")}?')
    return values


# what ml_collections says of a field that is not there
NO_FIELD = re.compile(r"'([^']+)'(?: Did you mean \"([^\"]+)\")?|.*Attempting to lookup: (\S+)")


def _told(error: Exception) -> str:
    """What was wrong with the flags, in one line."""
    inner = error.args[0] if error.args else ""
    place = traceback.extract_tb(error.__traceback__)[-1]
    if isinstance(error, flags.Error):
        text = str(error)
        if "Traceback" in text:  # a config file that raised: its last line says what
            text = f"{text.split(':')[0]}: {text.strip().splitlines()[-1]}"
        return f"{' '.join(text.split()).removeprefix('Error: ')} (--help lists the flags)"
    if isinstance(inner, KeyError):
        inner = repr(inner.args[0]) if "'" not in inner.args[0] else inner.args[0]
    field = NO_FIELD.match(" ".join(str(inner).split()))
    if isinstance(error, AttributeError | KeyError) and field:
        return _no_field(field[1] or field[3], field[2])
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    ours = not place.filename.startswith(os.path.dirname(config_flags.__file__))
    return f"{place.filename}, line {place.lineno}: {text}" if ours else text


def _no_field(name: str, near: str | None) -> str:
    return f"the config has no field {name!r}" + (f'; did you mean "{near}"?' if near else "")


def _look_for(config: ConfigDict, field: str) -> None:
    """Raises UserError if there is no such field, flat: "optimizer.b1"."""
    inner: Any = config
    for name in field.split("."):
        if not isinstance(inner, ConfigDict) or name not in inner:
            near = get_close_matches(name, inner, n=1) if isinstance(inner, ConfigDict) else []
            raise UserError(_no_field(field, near[0] if near else None))
        inner = inner[name]


def define_config(values: flags.FlagValues) -> None:
    """--config=file.py:arg, --config.field=value."""
    config_flags.DEFINE_config_file("config", lock_config=True, flag_values=values)


def define_seed(values: flags.FlagValues) -> None:
    """--seed, of what JAX and NumPy take."""
    bounds = {"lower_bound": 0, "upper_bound": 2**32 - 1}
    flags.DEFINE_integer("seed", 0, "decides every draw", flag_values=values, **bounds)


def required(values: flags.FlagValues, name: str) -> Any:
    """The flag's value, or a UserError that asks for it."""
    value = values[name].value
    if value in (None, ""):
        raise UserError(f"--{name}=... is needed (--help lists the flags)")
    try:
        getattr(value, "is_locked", None)  # a config file that is not there is told on first use
    except OSError as error:
        raise UserError(f"--{name}: {' '.join(str(error).split())}") from error
    return value


def read_config(file: str, overrides: dict[str, Any] | None = None) -> ConfigDict:
    """`"configs/rcg/rdm.py:variant=small"` and flat overrides -> locked ConfigDict, as by --config.

    Raises:
      UserError: no such file, an unknown field, a value of another type.
    """
    path, _, arg = file.partition(":")
    if not os.path.isfile(path):
        raise UserError(f"no config file {path}")
    spec = importlib.util.spec_from_file_location("config_file", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        config = module.get_config(arg)
        config.lock()
        for field in overrides or {}:
            _look_for(config, field)
        config.update_from_flattened_dict(overrides or {})
    except (UserError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: {' '.join(str(error).split())}") from error
    return config
