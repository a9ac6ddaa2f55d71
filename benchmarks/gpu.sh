#!/bin/sh
# What asl says of a GPU, asked of the one at hand: first whether it is right, then how fast. From the source tree, without a network.
#
#     benchmarks/gpu.sh OUT          the laws of tests/conformance by the kernels, then asl_bench; logs and JSON go into the folder OUT
#     benchmarks/gpu.sh OUT cuda 5   in five minutes at most; eight if nothing is said
#     benchmarks/gpu.sh OUT cpu      a rehearsal without a GPU: Triton's interpreter, small sizes, some minutes, and no judgement
#
# Needs PyTorch, Triton, fastcore, tqdm and pytest; timm, torchvision and kornia take part if they are there. What is missing can be brought
# as wheels in the folder .gpu. A step has its share of the time; what it has measured by then is kept. Ends with the number of steps that failed.
cd "$(dirname "$0")/.." || exit 99
out=${1:?needs a folder for logs and JSON}
device=${2:-cuda}
minutes=${3:-8}
mkdir -p "$out"
if ls .gpu/*.whl >/dev/null 2>&1; then
    python3 -m pip install -q --no-index --no-deps --no-compile --target .site .gpu/*.whl || exit 99
fi
export PYTHONPATH=".site:.:$PYTHONPATH" PYTHONUNBUFFERED=1 ASL_DEVICE="$device"
failed=0

step() {  # name, limit in seconds, command
    name=$1; limit=$2; shift 2
    timeout "$limit" "$@" >"$out/$name.log" 2>&1
    status=$?
    ended=$(test $status = 124 && echo ", ended by its limit of $limit s")
    if grep -q '^FAILED\|^ERROR' "$out/$name.log" || { [ $status != 0 ] && [ $status != 124 ]; }; then
        failed=$((failed+1))
        ended="$ended, FAILED ($status)"
    fi
    echo "$name$ended: $(tail -n 1 "$out/$name.log")"
}
bench() {  # name, limit, options
    name=$1; limit=$2; shift 2
    step "$name" "$limit" python3 -c 'from asl.bench import main; main()' --device "$device" --out "$out/$name.json" --force "$@"
}
laws() {  # limit, options
    limit=$1; shift
    step laws "$limit" python3 -m pytest -q -p no:cacheprovider tests/conformance/test_values.py "$@"
}

if [ "$device" = cpu ]; then
    laws 600 -k 'test_one_label and triton and float32'
    bench multi 300 --task multi --sizes 16x300 --easy .9 --repeats 1 --no-compile
    bench single 300 --task single --sizes 16x300 --repeats 1 --no-compile
    bench heads 300 --linear --sizes 16x300 --features 8 --easy .9 --repeats 1 --no-compile
else
    python3 -c 'import xdist' 2>/dev/null && workers='-n 12'
    laws $((minutes*15)) tests/conformance/test_laws.py $workers
    bench multi $((minutes*23)) --task multi --sizes 4096x9605,512x9605 --easy 0,.9,.99
    bench single $((minutes*10)) --task single --sizes 4096x9605,512x9605
    bench heads $((minutes*12)) --linear --sizes 256x100000,256x670091 --easy 0,.9,.99
fi
exit $failed
