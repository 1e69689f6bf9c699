"""Sampling with ChefFusion and talking to it, through the commands."""

import io
import json
import os
import re

import numpy as np
import pytest
from PIL import Image

from launch import chat, sample
from rcg.errors import UserError
from tests.chef_fusion import tiny_kitchen


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    paths = tiny_kitchen.build(tmp_path_factory.mktemp("chef"))
    named = [f"--components.{name}={path}" for name, path in paths.items()]
    return [*named, "--max_words=8", "--steps=2", "--scheduler=ddim", "--height=16", "--width=16"]


@pytest.fixture
def photo(tmp_path):
    path = str(tmp_path / "photo.jpg")
    Image.fromarray(tiny_kitchen.photo()).save(path)
    return path


def test_sample_writes_the_answer(flags, photo, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert sample.main(["sample", *flags, "--task=i2t", f"--image={photo}", f"--out={out}"]) == 0
    said = json.loads((tmp_path / "out/answer.json").read_text())
    assert said["task"] == "i2t" and said["pictures"] == [] and said["images"] == [photo]
    assert capsys.readouterr().out.strip() == said["text"].strip()
    prompt = "--prompt=This is food title: Pie"
    assert sample.main(["sample", *flags, "--task=t2i", prompt, f"--out={out}"]) == 0
    said = json.loads((tmp_path / "out/answer.json").read_text())
    assert said["pictures"] == [os.path.join(out, "picture_00.png")]
    first = np.asarray(Image.open(said["pictures"][0]))
    assert first.shape == (16, 16, 3) and said["pictures"][0] in capsys.readouterr().out
    sample.main(["sample", *flags, "--task=t2i", prompt, f"--out={out}", "--seed=1"])
    assert not np.array_equal(first, np.asarray(Image.open(said["pictures"][0])))
    begun = [f"--image={photo}", "--strength=0.5"]
    sample.main(["sample", *flags, "--task=t2i", prompt, *begun, f"--out={out}"])
    assert not np.array_equal(first, np.asarray(Image.open(said["pictures"][0])))


@pytest.mark.parametrize(
    "given, message",
    [
        (["--task=i2t"], "needs an image"),
        (["--task=i2t", "--image=nowhere.jpg"], "--image=nowhere.jpg: No such file"),
        (["--task=t2i"], "the prompt is empty"),
        (["--task=t2t", "--prompt=x", "--top_p=3"], r"top_p 3.0 in \(0, 1\]"),
        (["--task=t2t", "--prompt=x", "--top_p=0.9"], "they need --temperature above 0"),
        (["--task=t2i", "--prompt=x", "--num=4"], "--num has no meaning for --task=t2i; it is for generate"),
        (["--task=t2i", "--prompt=x", "--rcg=x"], "paint with --image_decoder=rcg only"),
        (["--task=generate", "--labels=1"], "--labels has no meaning for --task=generate"),
        (["--task=t2t", "--prompt=x", "--seed=-1"], "seed"),
        (["--task=t2i", "--prompt=x", "--scheduler=magic"], 'scheduler "magic" is not one of pndm'),
        (["--task=t2i", "--prompt=x", "--height=17"], "must be multiples of 4"),
        (["--task=t2i", "--prompt=x", "--steps=5000"], "5000"),
        (["--task=t2t", "--prompt=x", "--temperature=nan"], "all of them finite"),
        (["--task=t2t", "--prompt=x", "--repetition_penalty=inf"], "all of them finite"),
    ],
)
def test_mistakes_are_one_line(flags, tmp_path, monkeypatch, given, message):
    def write(*unused, **unused_too):
        raise AssertionError("this must be told before a word is written")

    monkeypatch.setattr("chef_fusion.generate.write", write)
    with pytest.raises(UserError, match=message):
        sample.main(["sample", *flags, *given, f"--out={tmp_path / 'out'}"])
    with pytest.raises(UserError, match="--workdir=<a ChefFusion run's folder> is needed"):
        sample.main(["sample", "--task=t2t", "--prompt=x", f"--out={tmp_path / 'out'}"])


def test_a_recipe_in_the_place_of_a_prompt(flags, tmp_path):
    path, out = tmp_path / "pie.json", tmp_path / "out"

    def prompt_of(task, held):
        path.write_text(json.dumps(held))
        given = ["--pictures=forbid"] if task != "t2i" else []
        sample.main(["sample", *flags, *given, f"--task={task}", f"--recipe={path}", f"--out={out}"])
        return json.loads((out / "answer.json").read_text())["prompt"]

    part = {"instructions": ["Bake it!"], "title": "Pie"}
    known = "This is food title: Pie This is instruction: ['bake it!']"
    assert prompt_of("t2t", part) == f"{known} This is ingredient:"
    assert prompt_of("t2i", {"task": "i2t", "recipe": part}) == known  # an answer.json
    whole = part | {"ingredients": ["2 apples"]}
    assert "2 apples" in prompt_of("t2i", whole)
    with pytest.raises(UserError, match="leaves nothing to write"):
        prompt_of("t2ti", whole)
    for wrong in ({}, {"titel": "Pie"}, {"title": 3}, {"ingredients": "2 apples"}, {"ingredients": [2]}):
        with pytest.raises(UserError, match="pie.json is no recipe"):
            prompt_of("t2t", wrong)
    given = ["--task=t2t", "--recipe=nowhere.json", f"--out={out}"]
    with pytest.raises(UserError, match="can't read nowhere.json"):
        sample.main(["sample", *flags, *given])
    with pytest.raises(UserError, match="give one of them"):
        sample.main(["sample", *flags, *given, "--prompt=x"])
    with pytest.raises(UserError, match="--recipe has no meaning for --task=dialogue"):
        sample.main(["sample", *flags, "--task=dialogue", "--recipe=nowhere.json", f"--out={out}"])


def test_a_picture_that_is_none(flags, tmp_path):
    path = tmp_path / "text.jpg"
    path.write_text("no picture")
    with pytest.raises(UserError, match="can't be read as a picture"):
        sample.main(["sample", *flags, "--task=i2t", f"--image={path}", f"--out={tmp_path / 'out'}"])


def test_a_conversation(flags, photo, tmp_path, monkeypatch, capsys):
    lines = ["Hello", f"/image {photo}", "What is it?", "/picture", "/nonsense", "/image nowhere", "/save"]
    lines += ["/seed 3", "/reset", "", "/save", "/quit", "never read"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
    out = str(tmp_path / "chat")
    # /picture makes one also where an answer may have several
    assert chat.main(["chat", *flags, f"--out={out}", "--max_pictures=2"]) == 0
    said = capsys.readouterr()
    assert (
        "max_pictures" not in said.err and "goes with your next line" in said.out and "forgotten" in said.out
    )
    assert "/nonsense is none of /image" in said.err and "--image=nowhere" in said.err
    pictures = [name for name in os.listdir(out) if name.endswith(".png")]
    assert pictures and all(os.path.join(out, name) in said.out for name in pictures)
    assert json.loads((tmp_path / "chat/conversation.json").read_text()) == []  # after /reset


def test_a_conversation_longer_than_the_context_forgets_its_beginning(flags, tmp_path, monkeypatch, capsys):
    lines = ["one two three four five six seven eight nine ten " * 2] * 6 + ["one", "two", "/save", "/quit"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
    assert chat.main(["chat", *flags, f"--out={tmp_path}", "--pictures=forbid"]) == 0
    said = capsys.readouterr()
    told = [int(n) for n in re.findall(r"\[too long by now: the first (\d+) turns are forgotten\]", said.out)]
    assert said.err == "" and told[0] == 1 and told == sorted(set(told))
    turns = json.loads((tmp_path / "conversation.json").read_text())
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 8  # of what is written nothing is lost


def test_letters_of_several_tokens_stop_no_stream(tmp_path, monkeypatch):
    def reply(chef, messages, key, *, on_text, **unused):
        for text in ("1", "1\ufffd", "1½", "1½ cups"):
            on_text(text)
        return {"role": "assistant", "content": ["1½ cups"]}

    monkeypatch.setattr(chat.tasks, "reply", reply)
    written = []
    chat.Conversation(None, chat.tasks.Settings(), str(tmp_path), 0).say("How much?", written.append)
    assert "".join(written) == "1½ cups\n"


@pytest.mark.parametrize("said", ["/seed --5", "/seed ²", "/seed", "/seed 99999999999999999999"])
def test_a_seed_that_is_none_is_said(said, tmp_path):
    talk = chat.Conversation(None, chat.tasks.Settings(), str(tmp_path), 0)
    with pytest.raises(UserError, match="/seed <n>"):
        chat.obey(talk, said, print)


def test_turns_are_kept_and_the_seed_decides(flags, tmp_path, monkeypatch):
    def talk(seed):
        lines = ["Hello", "And now?", "/save"]
        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
        out = tmp_path / f"chat{seed}"
        options = ["--temperature=1.0", "--pictures=forbid", f"--seed={seed}", f"--out={out}"]
        chat.main(["chat", *flags, *options])
        return json.loads((out / "conversation.json").read_text())

    first = talk(0)
    assert [turn["role"] for turn in first] == ["user", "assistant"] * 2
    assert first == talk(0) and first != talk(1)


def test_rcg_paints_without_guidance_unless_told(flags, monkeypatch, tmp_path):
    told = []
    monkeypatch.setattr(chat.answering, "load", lambda values: None)
    monkeypatch.setattr(chat, "Conversation", lambda chef, settings, *rest: told.append(settings))
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    for given, scales in (([], (7.5, 0.0)), (["--cfg_scale=2"], (2.0, 2.0))):
        assert chat.main(["chat", *flags, *given]) == 0
        settings = told.pop()
        assert (settings.cfg_scale, settings.rcg["cfg_scale"]) == scales
    with pytest.raises(UserError, match="--strength is for launch.sample"):
        chat.main(["chat", *flags, "--strength=0.5"])


def test_an_earlier_conversations_pictures_stay(tmp_path):
    for name in ("000_00.png", "007_01.png", "holiday.png", "conversation.json"):
        (tmp_path / name).write_bytes(b"")
    talk = chat.Conversation(None, chat.tasks.Settings(), str(tmp_path), 0)
    assert talk.pictures == 8


def test_what_can_not_be_written_ends_no_conversation(flags, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")

    class Lines(io.StringIO):
        def readline(self, *_):
            line = super().readline()
            if line.startswith("latin"):
                raise UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "invalid")
            return line

    monkeypatch.setattr("sys.stdin", Lines("/save\nlatin\n/quit\n"))
    assert chat.main(["chat", *flags, f"--out={tmp_path / 'file'}"]) == 0
    said = capsys.readouterr().err
    assert "can't be written" in said and "not UTF-8" in said
    with pytest.raises(UserError, match="is a file; name a folder"):
        sample.main(["sample", *flags, "--task=t2t", "--prompt=x", f"--out={tmp_path / 'file'}"])
