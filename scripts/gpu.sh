#!/usr/bin/env bash
# What a CUDA device is needed for: the gpu tests, the kernels under compute-sanitizer, the bench and a short training run. Results go to $OUT.
# Set PY to a Python that has PyTorch; the checkout is used as it is, installed or not.
set -u
cd "$(dirname "$0")/.."
PY=${PY:-python3}
OUT=${OUT:-out/gpu}
STEPS=${STEPS:-300}
mkdir -p "$OUT"
export PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}"
failed=0

"$PY" - <<'CHECK' || exit 2
import sys, torch
if not torch.cuda.is_available():
    sys.exit("PyTorch finds no CUDA device")
print(torch.__version__, torch.cuda.get_device_name())
CHECK

echo "== tests marked gpu"
"$PY" -m pytest -q -m gpu --junitxml="$OUT/gpu-tests.xml"
code=$?
[ $code -eq 0 ] || [ $code -eq 5 ] || failed=1 # 5: there are none yet

echo "== kernels: memory and races"
if sanitizer=$(command -v compute-sanitizer || ls "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer" 2>/dev/null); then
    for tool in memcheck racecheck; do
        "$sanitizer" --tool $tool --error-exitcode 1 --target-processes all \
            "$PY" -m pytest -q -m gpu -k sanitized tests/models/kernels || failed=1
    done
else
    echo "compute-sanitizer is not found: memory and races were NOT checked; it comes with the CUDA toolkit" >&2
    failed=1
fi

echo "== bench"
for precision in float32 bfloat16; do
    "$PY" -m steerdiff bench --device cuda --precision $precision --out "$OUT/bench-$precision.json" || failed=1
done

echo "== training, $STEPS steps"
rm -rf runs/gpu-check
"$PY" -m steerdiff train diffusion --config train/recipes/emoji64.yaml --folder runs/gpu-check \
    --device cuda --steps "$STEPS" --no-progress || failed=1
cp runs/gpu-check/metrics.csv "$OUT/metrics.csv" || failed=1
exit $failed
