// The CUDA driver on the fake libcuda: memory, launches, and every way to fail or to be absent.
import { beforeAll, describe, expect, test } from "bun:test";
import { fakeCuda, scenarios } from "./build.ts";

let library = "";
let program = "";

function run(name: string, env: Record<string, string> = {}) {
  const BNB_NVTX = env.BNB_NVTX === "fake" ? library : env.BNB_NVTX; // which stands in for NVIDIA's tools too
  const { exitCode, signalCode, stdout, stderr } = Bun.spawnSync([program, name], {
    env: { ...process.env, BNB_CUDA_LIBRARY: library, BNB_SIM_BUN: process.execPath, ...env, BNB_NVTX },
    stdout: "pipe",
    stderr: "pipe",
  });
  return { ended: signalCode ?? exitCode, stdout: stdout.toString(), stderr: stderr.toString() };
}

describe.skipIf(process.platform !== "linux" || process.arch !== "x64")("the CUDA host", () => {
  beforeAll(async () => {
    library = fakeCuda();
    program = await scenarios();
  }, 120_000);

  /** A scenario checks itself; the last column is what it prints. */
  const expected: [name: string, env: Record<string, string>, printed?: string][] = [
    ["describes", {}, "Simulated NVIDIA GPU 0, compute capability 9.0, 8.6 GB, driver for CUDA 13.0"],
    ["takes_kernels_once", {}],
    ["refuses_damaged_kernels", {}],
    ["lacks_nothing_without_a_driver", { BNB_CUDA_LIBRARY: "/nowhere.so" }, "could not be loaded: /nowhere.so"],
    ["opens_the_second", { BNB_FAKE_CUDA: "devices=2" }, "there is no GPU 2: NVIDIA's driver sees 2, counted from 0"],
    ["computes", {}],
    ["computes", { BNB_SIM: "check", BNB_SIM_SEED: "7" }],
    ["polls_until_idle", {}],
    ["compiles_once_for_each_use", {}],
    ["frees_after_the_work", {}],
    ["refuses_too_much_memory", { BNB_FAKE_CUDA: "memory=2000000" }],
    ["survives_a_failed_allocation", {}],
    ["copies_large_memory", {}, "8 copies"],
    ["copies_large_memory", { BNB_FAKE_CUDA: "fail_pinned=2" }, "5 copies"],
    ["writes_without_a_wait", {}],
    ["writes_more_than_is_pinned", {}],
    ["writes_more_than_is_pinned", { BNB_FAKE_CUDA: "fail_pinned=2" }],
    ["computes", { BNB_FAKE_CUDA: "fail_pinned=1" }],
    ["copies_within_the_gpu", {}],
    ["passes_on_an_injected_compile_error", { BNB_FAKE_CUDA: "fail_compile=1" }],
    ["passes_on_a_refused_launch", {}],
    ["names_ranges", { BNB_NVTX: "fake" }],
    ["refuses_bad_launches", {}],
    ["says_that_the_context_is_lost", {}],
    ["tells_what_a_kernel_did", {}, "simulated: small.metal:15: bad access: at byte 4000 of buffer 2"],
    ["tells_what_a_kernel_did", { BNB_SIM: "check" }, "small.metal:15: write out of bounds: 4 bytes at byte 4000"],
    ["serves_two_threads", {}],
    ["runs_a_graph_again", {}],
    ["forgets_a_graph_under_way", {}],
    ["passes_on_failures_of_graphs", {}],
    ["captures_beside_another_thread", {}],
    ["absent", { BNB_CUDA_LIBRARY: "/nowhere.so" }, "BNB_CUDA_LIBRARY names could not be loaded: /nowhere.so"],
    ["absent", { BNB_NVTX: "/nowhere.so" }, "BNB_NVTX is set, and /nowhere.so was not found; CUDA's toolkit has it"],
    ["absent", { BNB_NVTX: "libm.so.6" }, "libm.so.6 has no nvtxRangePushA and nvtxRangePop"],
    ["absent", { BNB_CUDA_LIBRARY: "libm.so.6" }, "is no NVIDIA driver: it lacks cuInit"],
    [
      "absent",
      { BNB_FAKE_CUDA: "version=11020" },
      "the driver is for CUDA 11.2, and 11.4 is needed; update it to 470 or later",
    ],
    [
      "absent",
      { BNB_FAKE_CUDA: "init=100" },
      "NVIDIA's driver sees no GPU; a container needs --gpus all, a GPU in MIG mode",
    ],
    ["absent", { BNB_FAKE_CUDA: "init=100", CUDA_VISIBLE_DEVICES: "-1" }, 'and CUDA_VISIBLE_DEVICES is "-1"'],
    ["absent", { BNB_FAKE_CUDA: "init=803" }, "are of different versions; restart the machine"],
    ["absent", { BNB_FAKE_CUDA: "init=802" }, "nvidia-fabricmanager must run"],
    ["absent", { BNB_FAKE_CUDA: "init=999" }, "cuInit failed: "],
    ["absent", { BNB_FAKE_CUDA: "devices=0" }, "NVIDIA's driver sees no GPU"],
    ["absent", { BNB_FAKE_CUDA: "capability=75" }, "has compute capability 7.5, and 8.0 (Ampere, 2020) is needed"],
    ["absent", { BNB_FAKE_CUDA: "pools=0" }, "has no memory pools here"],
    ["absent", { BNB_FAKE_CUDA: "context=46" }, "is in exclusive mode and another process has it"],
    ["absent", { BNB_FAKE_CUDA: "context=2" }, "has no memory left for a context"],
  ];

  test.each(expected)("%s %o", (name, env, printed = "") => {
    const { ended, stdout, stderr } = run(name, env);
    expect(stderr).toBe("");
    expect(ended).toBe(0);
    expect(stdout).toContain(printed);
  });

  test.each([{}, { QUICK_EXIT: "1" }])("BNB_PROFILE=1 prints a table of kernels at exit %o", (env) => {
    const { stderr } = run("computes", { BNB_PROFILE: "1", ...env });
    expect(stderr).toMatch(/^kernel +runs +total ms +mean us +GB\/s\nadd +3 +[\d.]+ +[\d.]+ +[\d.]+\n$/);
  });

  test("kernels are timed one by one, not in graphs", () => {
    expect(run("makes_no_graph_while_it_profiles", { BNB_PROFILE: "1" }).ended).toBe(0);
  });

  test("a system without NVIDIA's driver says so", () => {
    const { stdout } = run("absent", { BNB_CUDA_LIBRARY: "" });
    expect(stdout).toMatch(
      /CUDA is absent: (there is no NVIDIA driver|this machine has NVIDIA's kernel module|NVIDIA's driver)/,
    );
  });
});
