#!/usr/bin/env bash
# Tries an installed wheel from an empty folder: wheel_check.sh BIN, the environment's bin folder.
set -euo pipefail
bin=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
"$bin/lightning" --version
"$bin/lightning" configs >/dev/null
"$bin/lightning" fit --config quickstart --trainer.limit_train_batches 1 --trainer.limit_val_batches 1 --trainer.max_epochs 1
"$bin/lightning" sweep run overlock_components --profile quickstart --workers 1 \
  --set "seeds=[1]" --set trainer.max_epochs=1 --set trainer.limit_train_batches=1 \
  --set trainer.limit_val_batches=1 --set model.cooldown_epochs=0
echo "the wheel alone works"
