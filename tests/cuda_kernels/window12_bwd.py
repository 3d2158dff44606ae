# SPDX-License-Identifier: Apache-2.0
"""The backward of windows of 12 x 12 tokens at head_dim 32. What it shares with others is tested there."""

from cuda_kernels.kernel import Bug, Kernel

HEADER = "csrc/cuda/window12_bwd.h"
CUT = "csrc/cuda/window12.h"
SCORES = "csrc/cuda/window12_scores.h"
GRADIENTS = "csrc/cuda/window12_gradients.h"
RESULTS = "csrc/cuda/window12_results.h"

INSTANCES = """
template __global__ void window12_bwd<BFloat16, false>(const Window12BwdParams);
template __global__ void window12_bwd<BFloat16, true>(const Window12BwdParams);
template __global__ void window12_bwd<Half16, false>(const Window12BwdParams);
template __global__ void window12_bwd<Half16, true>(const Window12BwdParams);
"""

BUGS = {
    "weights in the same banks": Bug("piece / 2 * 32 + ((piece ^ row >> 2) & 1) * 16", "piece * 16", CUT),
    "one stage for two windows": Bug(
        "goes_on) results.fetch(b, place, stage);", "goes_on) results.fetch(b, place, 1 - stage);"
    ),
    "rows of the same window again": Bug("b += p.all.advance(&place);\n", "\n"),
    "barriers are passed by": Bug("wait_for_all = [] { sync_threads(); };", "wait_for_all = [] {};"),
    "results of the image behind": Bug(
        "load_shared<int64_t>(image(stage))", "load_shared<int64_t>(image(1 - stage))", RESULTS
    ),
    "dq of the window behind": Bug("scores.compute_queries(1 - stage);", "scores.compute_queries(stage);"),
    "dk and dv of the window behind": Bug("results.compute(1 - stage);", "results.compute(stage);"),
    "a wait that is too weak": Bug("copy_async_wait<0>();", "copy_async_wait<1>();", "csrc/cuda/one_pass_bwd.h"),
    "it ends with copies on their way": Bug("goes_on = i + 1 < work.windows;", "goes_on = i < work.windows;"),
    "rows of padding come from the image": Bug(
        "aligned && problem.H % Window12::kSide == 0 && problem.W", "aligned && problem.W", CUT
    ),
    "columns of padding come from the image": Bug("== 0 && problem.W % Window12::kSide == 0,", "== 0,", CUT),
    "an image does not end": Bug("at < at - size ? at : at - size", "at", RESULTS),
    "k for v": Bug(
        "fetch_piece(place_of(i, 3), pixel, v.offset(pixel), v,",
        "fetch_piece(place_of(i, 3), pixel, k.offset(pixel), k,",
        RESULTS,
    ),
    "grad_out with the strides of qkv": Bug("pieces[i / 4][which == 1]}", "pieces[i / 4][0]}", RESULTS),
    "regions of columns": Bug(
        "p.all.region(place, first_row + 2 * i, column)", "p.all.region(place, 0, column)", RESULTS
    ),
    "no mask": Bug("score[j][e] += p.problem.mask_value * kLog2E;", "score[j][e] += 0;", SCORES),
    "regions of the neighbour": Bug("? two >> 16 : two & 0xffffu", "? two & 0xffffu : two >> 16", SCORES),
    "a border forgotten": Bug("borders(stage), border ? 1 : 0)", "borders(stage), 0)", RESULTS),
    "a bias in base 2 is not finite": Bug(
        "limited(load_global<float>(problem.bias + entry))", "load_global<float>(problem.bias + entry)"
    ),
    "entry of the bias of the neighbour": Bug("strips, i & 1)", "strips, 0)"),
    "the bias of keys for that of queries": Bug(
        "2 * (query_tile - key_tile) + half - eight", "2 * (key_tile - query_tile) + half - eight", CUT
    ),
    "eight keys behind take the bias of those before": Bug(
        "2 * (query_tile - key_tile) + half - eight", "2 * (query_tile - key_tile) + half", CUT
    ),
    "strips of the bias exchanged": Bug("(query_strip - strip + Window12", "(strip - query_strip + Window12", SCORES),
    "sum of two lanes": Bug("    sum += shuffle_xor(sum, 2);\n", "", SCORES),
    "sums of one strip of keys": Bug(
        "strip < Window12::kStrips; ++strip) {\n        const auto two",
        "strip < 1; ++strip) {\n        const auto two",
        SCORES,
    ),
    "small sums are taken for exact": Bug("of_row >= kLeast && of_row <= kMost", "of_row <= kMost", SCORES),
    "large sums are taken for exact": Bug("of_row >= kLeast && of_row <= kMost", "of_row >= kLeast", SCORES),
    "the largest score of two lanes": Bug("            top[i] = fmaxf(top[i], shuffle_xor(top[i], 2));\n", "", SCORES),
    "a row wholly -inf is NaN": Bug("if (top[i] == -INFINITY) top[i] = 0.0f;", "", SCORES),
    "exact weights without a mask": Bug(
        "if (load_shared<int>(borders(stage)) != 0) mask_tile(", "if (false) mask_tile(", SCORES
    ),
    "exact weights with the bias of own keys": Bug("entries_of(tile / kTiles) +", "entries_of(key_strip) +", SCORES),
    "rows are read before all lanes have left them": Bug(
        "    sync_warp();\n    score(stage, [](int) {});", "    score(stage, [](int) {});", SCORES
    ),
    "rows are overwritten while they are read": Bug("    sync_warp();  // rows have been read\n", "", SCORES),
    "a dead row takes NaN from v": Bug("differentiate<true>(stage);", "differentiate<false>(stage);", SCORES),
    "delta of the other row": Bug("-delta[r][(e >> 1) & 1];", "-delta[r][1 - ((e >> 1) & 1)];", SCORES),
    "dbias of the last window": Bug("to_bias[i][0] = two.x;", "to_bias[i][0] = 0.0f;", SCORES),
    "dS without the norms of q": Bug("gradient[0] *= of_keys.x * of_row;", "gradient[0] *= of_keys.x;", SCORES),
    "dS without the norms of k": Bug("gradient[1] *= of_keys.y * of_row;", "gradient[1] *= of_row;", SCORES),
    "weights of the keys of another strip": Bug(
        "2 * kTiles * key_strip + (lane >> 4)", "2 * kTiles * query_strip + (lane >> 4)", SCORES
    ),
    "P not transposed": Bug("ldmatrix_x4_trans(a[r]", "ldmatrix_x4(a[r]", GRADIENTS),
    "dv from q": Bug(" + (kWhich < 2 ? 0 : Tile::kSecond);", ";", GRADIENTS),
    "dk from P": Bug("(kWhich < 2 ? Window12::kWeights : 0)", "(kWhich < 1 ? Window12::kWeights : 0)", GRADIENTS),
    "padding of one row of two": Bug("place[2 * r] < 0, place[2 * r + 1] < 0", "place[2 * r] < 0, false", RESULTS),
    "tiles of a warp over one another": Bug("stage(tiles + r * Window12::kResultTile,", "stage(tiles,", GRADIENTS),
    "dv over dk that is still read": Bug(
        "    if (kWhich > 1) sync_warp();  // the tiles of dk have been read\n", "", RESULTS
    ),
    "padding is an image": Bug("if (p.in_pieces) {  // nothing is padding", "if (true) {  //", RESULTS),
    "dq of all warps in one place": Bug("this->result(warp)", "this->result(0)", SCORES),
    "dq of the first strip": Bug("leave<0>(this->result(kTiles * strip))", "leave<0>(this->result(0))", RESULTS),
    "dq before it is there": Bug(
        "    wait_for_all();\n    results.leave_queries();", "    results.leave_queries();\n    wait_for_all();"
    ),
    "delta of the tile behind": Bug("add_deltas(r - 1);", "add_deltas(r);", SCORES),
    "half of the channels twice": Bug("others[i / 2].b[step];", "others[i / 2].b[0];", SCORES),
    "dbias of one of two entries": Bug("of_lane < 64; ++of_lane", "of_lane < 64; of_lane += 2"),
    "dpad_value of one strip": Bug("Window12::kScoreWarps, kStrips);", "Window12::kScoreWarps, 1);"),
    "dlogit_scale of eight lanes": Bug("kCosine && mask < 32;", "kCosine && mask < 16;", SCORES),
    "dlogit_scale of one warp": Bug("Window12::kScoreWarps, kStrips);", "1, kStrips);"),
    "sums of warps before all have left theirs": Bug(
        "    scores.leave_parts();\n    wait_for_all();", "    wait_for_all();\n    scores.leave_parts();"
    ),
    "dq and dv exchanged": Bug("to + kWhich * p.problem.nH", "to + (2 - kWhich) * p.problem.nH", RESULTS),
}

#: Twelve warps have 168 registers a thread, of which scores take 72. Only sm_90 and sm_100 have the shared memory.
KERNEL = Kernel(
    HEADER,
    INSTANCES,
    BUGS,
    known_spills={"sm_80": 184, "sm_86": 160, "sm_89": 160, "sm_90": 128, "sm_100": 192, "sm_120": 192},
)
