#!/bin/bash
# A TPU slice: NAME=my-slice ZONE=us-central2-b launch/clusters/tpu_slice.sh --config=... --workdir=/mnt/shared/runs/mage
#
# The same command on every VM of the slice; they find each other through the TPU's own metadata. The workdir
# and the data lie where all VMs see them: a mounted bucket or a shared disk.
set -euo pipefail
: "${NAME:?the slice}" "${ZONE:?its zone}"

# once, after the slice is created: the project and its environment on every VM
if [[ "${SETUP:-}" ]]; then
  gcloud compute tpus tpu-vm scp --recurse . "$NAME:project" --zone="$ZONE" --worker=all
  gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all \
    --command="cd project && python3 -m venv .venv && .venv/bin/pip install -e '.[tpu]'"
fi

# %q: what follows is read by a second shell
gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all \
  --command="cd project && .venv/bin/python -m launch.train $(printf '%q ' "$@")"
