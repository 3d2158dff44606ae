#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# What a machine with one CUDA GPU has to say of this tree, in stages of less than nine minutes each.
#
#   scripts/gpu_check.sh [--dry-run] STAGE
#
#   facts        versions, device, ceilings, and whether an op of ours keeps to streams and graphs: facts.json
#   lane-maps    which lane holds what, asked of the GPU for the tests' emulator: lane_maps.json
#   verify       builds, and runs the tests of the GPU backends: verify.xml
#   sanitize     the four tools of compute-sanitizer over our kernels: sanitize.txt, and a log of each
#   tune         measures the kernels' settings: tune.json
#   bench-op     the core op: op.json
#   bench-model  whole models beside timm: model.json
#   bench-peers  Swin-T and Swin-B at 224, Swin-B at 384, beside all peers: peers.json
#   all          each in turn, which takes longer
#
#   --dry-run    the same on a CPU: toy sizes, a few tests of the cpu backend, the probe's CPU build
#
# It uses the Python that is active, installs nothing, needs no network and no git, and leaves the GPU's settings alone.
# OUT                folder of the results, and of what each stage said, STAGE.log; default gpu_out
# PYTHON             the Python used; default python3
# COMPUTE_SANITIZER  where that program is, if neither on PATH nor in CUDA_HOME
# LIMIT              seconds that a stage may take, builds and all; default 535
# ROWS, PEERS        of the bench stages: other rows (a -k expression of pytest) and families than the stage's own
# ADD                of a bench stage: an earlier result of it; only rows that this lacks are measured
# SWIN_FAST_COMMIT, SWIN_FAST_DIRTY   for the benchmarks, where there is no .git: which commit this is, 0 if it is clean
set -euo pipefail
cd "$(dirname "$0")/.."

STAGES=(facts lane-maps verify sanitize tune bench-op bench-model bench-peers)
OUT=${OUT:-gpu_out}
PYTHON=${PYTHON:-python3}
COMPUTE_SANITIZER=${COMPUTE_SANITIZER:-$(PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin command -v compute-sanitizer ||
  echo compute-sanitizer)}
LIMIT=${LIMIT:-535}
LAST_CALL=75 # seconds before that, no row and no peer starts: those that have started have to end

wrong_usage() {
  echo "gpu_check.sh: $1; want [--dry-run] and one stage of: ${STAGES[*]} all" >&2
  exit 2
}

# Stops a program where the stage's time is over; one in a compiler that does not listen half a minute later.
within_limit() { timeout -k 30 "$((LIMIT > SECONDS ? LIMIT - SECONDS : 1))" "$@"; }

# Those that this version brings, by comma.
gpu_backends() {
  "$PYTHON" -c "from swin_fast.ops import OVERLOADS; print(*(b for b in ('triton', 'cuda') if b in OVERLOADS), sep=',')"
}

# What is built: the CUDA library, with which comes that of the CPU, loudly, and for this GPU alone, as six
# architectures would take longer than a stage may; in the dry run whatever can be.
choose_build() {
  export SWIN_FAST_BUILD=none
  if [[ $dry_run ]]; then
    SWIN_FAST_BUILD=auto
  elif [[ $(gpu_backends) == *cuda* ]]; then
    SWIN_FAST_BUILD=cuda
    export SWIN_FAST_CUDA_ARCHS=${SWIN_FAST_CUDA_ARCHS:-$("$PYTHON" -c \
      "import torch; print(*torch.cuda.get_device_capability(), sep='')")}
  fi
}

# A fresh machine has nothing built; where all is built this takes a second.
build() {
  choose_build
  within_limit make --no-print-directory build VENV=none PYTHON="$PYTHON"
}

facts() {
  within_limit "$PYTHON" -m benchmarks.facts --device "$device" --json "$OUT/facts.json"
}

lane-maps() {
  within_limit "$PYTHON" -m benchmarks.lane_maps --device "$device" --json "$OUT/lane_maps.json"
}

verify() {
  local backends tests=
  backends=$(gpu_backends)
  if [[ $dry_run ]]; then
    backends=cpu tests=tests/test_determinism.py::test_strides_of_the_parameters
  elif [[ -z $backends ]]; then
    echo "verify: no GPU backend in this version, nothing to run"
    return
  fi
  choose_build
  # A test is of a backend if its name says so; a required backend that cannot run is a failure, not a skip.
  within_limit make --no-print-directory test VENV=none PYTHON="$PYTHON" SWIN_FAST_REQUIRE="$backends" \
    ARGS="$tests -k '(${backends//,/ or }) and not emulator' --junitxml='$OUT/verify.xml' -rsfE --tb=short"
}

# One line per tool, in one word. clean: it ran, and found nothing; findings: it found something; refused: it does not
# work on this device; missing: there is no such program; failed: what ran under it did, or it gave no summary.
sanitize() {
  local backends program share tool word bad=
  : >"$OUT/sanitize.txt"
  backends=$(gpu_backends)
  if [[ $backends && -z $dry_run ]]; then
    build
    program=("$PYTHON" -m pytest -q -p no:cacheprovider tests/test_window_attention.py
      -k "(${backends//,/ or }) and test_out_and_gradients and (13x11 or 5x4 or 3x4)")
  else
    program=("$PYTHON" -m benchmarks.stream_probe --device "$device" --check call)
  fi
  # First without a tool: if that fails, no tool is to blame. It also compiles the probe, or what Triton compiles.
  SWIN_FAST_REQUIRE=$backends within_limit "${program[@]}"
  share=$(((LIMIT - SECONDS) / 4 + 1))
  for tool in memcheck racecheck initcheck synccheck; do
    word=$(SWIN_FAST_REQUIRE=$backends under_tool "$tool" "$share" "$OUT/sanitize-$tool.log" "${program[@]}")
    echo "$tool: $word" | tee -a "$OUT/sanitize.txt"
    if [[ $word == findings || $word == failed ]]; then
      tail -n 40 "$OUT/sanitize-$tool.log"
      bad=1
    fi
  done
  [[ -z $bad ]]
}

# under_tool TOOL SECONDS LOG PROGRAM...: runs the program under the tool, so long at most, and says the word.
under_tool() {
  local tool=$1 share=$2 log=$3 status=0
  shift 3
  if ! command -v "$COMPUTE_SANITIZER" >/dev/null; then
    echo missing
    return
  fi
  # Every tensor has memory of its own then; PyTorch's cache would hide a step beyond its end.
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout "$share" "$COMPUTE_SANITIZER" --tool "$tool" --error-exitcode 86 \
    --target-processes application-only "$@" >"$log" 2>&1 || status=$?
  if grep -Eq '^=+ .*(Device not supported|before first instrumented API call)' "$log"; then
    echo refused
  elif grep -Eq '^=+ .*SUMMARY: [1-9]' "$log"; then
    echo findings
  elif [[ $status == 0 ]] && grep -Eq '^=+ .*SUMMARY: 0 ' "$log"; then
    echo clean
  else
    echo failed
  fi
}

tune() {
  if [[ -e benchmarks/tune.py ]]; then
    build
    within_limit "$PYTHON" -m benchmarks.tune --device "$device" --json "$OUT/tune.json" --add \
      ${dry_run:+--toy --allow-dirty}
  else
    echo "tune: nothing to tune in this version"
  fi
}

# bench SUITE RESULT ROWS PEERS: "" are all of them.
bench() {
  local suite=$1 result=$2 rows=${ROWS:-$3} peers=${PEERS:-$4}
  if [[ -z $dry_run && ! -e .git && (-z ${SWIN_FAST_COMMIT:-} || ${SWIN_FAST_DIRTY:-1} != 0) ]]; then
    echo "bench: no .git here; want SWIN_FAST_COMMIT=<commit> SWIN_FAST_DIRTY=0, or nobody could repeat the result" >&2
    exit 2
  fi
  if [[ $dry_run ]]; then # toys have other names, and compilers their test in benchmarks/test_toy.py
    rows='' peers=${PEERS:-$(first_peers "$suite")}
  fi
  build
  within_limit "$PYTHON" -m benchmarks.run --suite "$suite" --device "$device" --json "$OUT/$result" \
    --minutes "$(((LIMIT - LAST_CALL - SECONDS) / 60))" ${rows:+--rows "$rows"} ${peers:+--peers "$peers"} \
    ${ADD:+--add "$ADD"} ${dry_run:+--toy --allow-dirty}
}

first_peers() { if [[ $1 == op ]]; then echo eager,sdpa; else echo eager,timm; fi; }

perform() {
  case $stage in
    bench-op) bench op op.json '' '' ;;
    bench-model) bench model model.json '' timm,timm_sdpa ;;
    bench-peers) bench model peers.json "swin_t-224x224 or swin_b-224x224 or swin_b-384x384" '' ;;
    *) "$stage" ;;
  esac
}

dry_run='' stage='' device=cuda
for argument in "$@"; do
  case $argument in
    -h | --help)
      sed -n '/^#   scripts/,/^set/s/^# \{0,1\}//p' scripts/gpu_check.sh
      exit
      ;;
    --dry-run) dry_run=yes device=cpu ;;
    *)
      [[ -z $stage ]] || wrong_usage "got '$stage' and '$argument'"
      stage=$argument
      ;;
  esac
done

if [[ $stage == all ]]; then
  failed=()
  for each in "${STAGES[@]}"; do
    "$BASH" scripts/gpu_check.sh ${dry_run:+--dry-run} "$each" || failed+=("$each")
  done
  echo "== all: ${failed[*]:-none} failed"
  exit $((${#failed[@]} > 0))
fi
[[ $stage && " ${STAGES[*]} " == *" $stage "* ]] || wrong_usage "got '$stage'"

mkdir -p "$OUT"
echo "== $stage${dry_run:+, dry run}: $(sed -n "s/^#   $stage  *//p" scripts/gpu_check.sh)"
trap 'echo "== $stage: exit status $?, $SECONDS s"' EXIT
perform 2>&1 | tee "$OUT/$stage.log"
