// The Metal driver on the fake Metal: batching, memory, failures that are injected, and the fake's own rules.
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { copyFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fingerprint } from "../../../scripts/msl/families.ts";
import { fakeMetal, misuses, scenarios } from "./build.ts";

let library = "";
let paths = { scenarios: "", misuses: "" };
let folder = "";

function run(program: string, name: string, env: Record<string, string> = {}) {
  const { exitCode, signalCode, stdout, stderr } = Bun.spawnSync([program, name], {
    env: { ...process.env, BNB_METAL_LIBRARY: library, BNB_SIM_BUN: process.execPath, ...env },
    stdout: "pipe",
    stderr: "pipe",
  });
  return { ended: signalCode ?? exitCode, stdout: stdout.toString(), stderr: stderr.toString() };
}

describe.skipIf(process.platform !== "linux" || process.arch !== "x64")("the Metal host", () => {
  beforeAll(() => {
    library = fakeMetal();
    paths = { scenarios: scenarios(), misuses: misuses() };
    folder = mkdtempSync(join(tmpdir(), "bnb-host-"));
  }, 120_000);
  afterAll(() => rmSync(folder, { recursive: true, force: true }));

  /** A scenario checks itself; the last column is what it prints. */
  const expected: [name: string, env: Record<string, string>, printed?: string][] = [
    [
      "describes",
      {},
      "Simulated Apple GPU, GPU family Apple9, 4.3 GB for one process, 1.1 GB in one buffer, kernels compiled from their embedded source",
    ],
    ["describes", { BNB_FAKE_METAL: "family=1007" }, "GPU family Apple7,"],
    ["describes", { BNB_FAKE_METAL: "family=1005", BNB_METAL_ANY_FAMILY: "1" }, "GPU family Apple5,"],
    ["computes", { BNB_FAKE_METAL: "family=1005", BNB_METAL_ANY_FAMILY: "1" }],
    ["describes", { BNB_FAKE_METAL: "default_device=0" }, "Simulated Apple GPU"],
    ["computes", {}],
    ["computes", { BNB_SIM: "check", BNB_SIM_SEED: "7" }],
    ["computes", { BNB_FAKE_METAL: "math_mode=0" }],
    ["barriers_follow_from_what_launches_touch", {}],
    ["keeps_buffers_resident", {}],
    ["computes", { BNB_FAKE_METAL: "residency=0" }],
    ["computes", { BNB_METAL_SERIAL: "1" }],
    ["polls_until_idle", {}],
    ["blocks_when_slow", { BNB_FAKE_METAL: "polls=1000000000,wait_milliseconds=5" }],
    ["batches_by_count", {}, "3 commits\n4 commits"],
    ["batches_by_count", { BNB_FAKE_METAL: "large_chip=1" }, "2 commits\n3 commits"],
    ["batches_by_count", { BNB_PROFILE: "1" }, "130 commits\n130 commits"],
    ["batches_by_bytes", {}],
    ["waits_for_no_later_work", { BNB_FAKE_METAL: "polls=1000000000" }],
    ["bounds_what_is_pending", {}],
    ["reuses_memory_after_its_work", {}],
    ["adopts_pages", {}],
    ["lets_the_cpu_read_past_the_end", {}],
    ["lets_the_cpu_read_past_the_end", { BNB_METAL_EXACT: "1" }],
    ["gives_exact_buffers", { BNB_METAL_EXACT: "1", BNB_SIM: "check" }],
    ["refuses_too_much_memory", { BNB_FAKE_METAL: "buffer_max=1000000,working_set=2000000" }],
    ["waits_for_memory", { BNB_FAKE_METAL: "working_set=2000000" }],
    ["survives_a_failed_allocation", {}],
    ["passes_on_compile_errors", {}],
    ["passes_on_an_injected_compile_error", { BNB_FAKE_METAL: "fail_compile=1" }],
    ["refuses_greedy_kernels", {}],
    ["refuses_more_threads_than_a_kernel_can_have", {}],
    ["refuses_bad_launches", {}],
    ["tells_once_that_work_was_lost", {}],
    ["marks_what_was_lost", {}],
    ["gives_threadgroup_memory", {}],
    ["gives_threadgroup_memory", { BNB_SIM: "check" }],
    ["tells_what_a_kernel_did", {}, "before: small.metal:15: bad access: at byte 4160 of buffer 2"],
    [
      "tells_what_a_kernel_did",
      { BNB_SIM: "check" },
      "before: small.metal:15: write out of bounds: 4 bytes at byte 4096",
    ],
    ["serves_two_threads", {}],
    ["leaks_nothing", {}],
    ["absent", { BNB_METAL_LIBRARY: "" }, "it needs macOS on Apple Silicon, and this is another system"],
    ["absent", { BNB_METAL_LIBRARY: "/nowhere.so" }, "a library could not be loaded: /nowhere.so"],
    ["absent", { BNB_METAL_LIBRARY: "libm.so.6" }, "objc_msgSend was not found in this system's Metal"],
    ["absent", { BNB_FAKE_METAL: "devices=0" }, "macOS shows no GPU to this process"],
    ["absent", { BNB_FAKE_METAL: "family=1006" }, "lacks what an Apple M1 has"],
    ["absent", { BNB_FAKE_METAL: "family=1005", BNB_METAL_ANY_FAMILY: "0" }, "try BNB_METAL_ANY_FAMILY=1"],
    ["absent", { BNB_FAKE_METAL: "os_version=1300" }, "it needs macOS 13.1 or later, and this is Version 13.0"],
    ["absent", { BNB_FAKE_METAL: "fail_queue=1" }, "gave no command queue"],
    ["absent", { BNB_CAPTURE: "a.trace" }, "BNB_CAPTURE is set, and a.trace does not end in .gputrace"],
    ["absent", { BNB_CAPTURE: "a.gputrace" }, "this process may not capture: start it with METAL_CAPTURE_ENABLED=1"],
    [
      "absent",
      { BNB_CAPTURE: "/nowhere/a.gputrace", METAL_CAPTURE_ENABLED: "1" },
      "Metal refuses to write /nowhere/a.gputrace: the output file can't be made",
    ],
  ];

  test.each(expected)("%s %o", (name, env, printed = "") => {
    const { ended, stdout, stderr } = run(paths.scenarios, name, env);
    expect(env.BNB_PROFILE ? "" : stderr).toBe("");
    expect(ended).toBe(0);
    expect(stdout).toContain(printed);
  });

  test.each([{}, { QUICK_EXIT: "1" }])("BNB_PROFILE=1 prints a table of kernels at exit %o", (env) => {
    const { stderr } = run(paths.scenarios, "batches_by_count", { BNB_PROFILE: "1", ...env });
    expect(stderr).toMatch(/^kernel +runs +total ms +mean us +GB\/s\nadd +130 +[\d.]+ +[\d.]+ +[\d.]+\n$/);
  });

  test("BNB_CAPTURE=file.gputrace has all that ran under names, and without it nothing has one", () => {
    const BNB_CAPTURE = join(folder, "run.gputrace");
    const METAL_CAPTURE_ENABLED = "1";
    for (const env of [{}, { QUICK_EXIT: "1" }]) {
      rmSync(BNB_CAPTURE, { force: true });
      const { ended, stderr } = run(paths.scenarios, "computes", { BNB_CAPTURE, METAL_CAPTURE_ENABLED, ...env });
      expect({ ended, stderr }).toEqual({ ended: 0, stderr: "" });
      const lines = readFileSync(BNB_CAPTURE, "utf8").split("\n");
      expect(lines).toContain("MTLCommandQueue: bunsandbytes");
      expect(lines).toContain("MTLCommandBuffer: batch 1");
      expect(lines).toContain("MTLComputeCommandEncoder: batch 1");
      expect(lines).toContain("MTLFunction: add 0");
      expect(lines).toContain("MTLBuffer: 4096 bytes");
      const adds = lines.filter((line) => line.startsWith("group: small/add 16 × 1 × 1 groups of 64, "));
      expect(adds.map((line) => line.split(", ")[1]).sort()).toEqual(["0 bytes", "8000 bytes", "8000 bytes"]);
    }
    expect(run(paths.scenarios, "computes", { BNB_LABELS: "1" })).toEqual({ ended: 0, stdout: "", stderr: "" });
  });

  test("kernels are taken from a library that was compiled ahead, but not from one of other kernels", () => {
    const program = join(folder, "scenarios");
    copyFileSync(paths.scenarios, program);
    const texts = ["small", "broken"].map((stem) =>
      readFileSync(join(import.meta.dir, `kernels/${stem}.metal`), "utf8"),
    );
    const metallib = join(folder, `bunsandbytes-${fingerprint(texts)}.metallib`);
    writeFileSync(join(folder, `bunsandbytes-${fingerprint(texts.slice(1))}.metallib`), "of other kernels");
    expect(run(program, "describes").stdout).toContain("kernels compiled from their embedded source");
    writeFileSync(metallib, `#include <metal_stdlib>\nusing namespace metal;\n${texts[0]}`);
    expect(run(program, "describes").stdout).toContain(`kernels from ${metallib}`);
    expect(run(program, "computes")).toEqual({ ended: 0, stdout: "", stderr: "" });
    writeFileSync(metallib, "not a library");
    expect(run(program, "describes").stdout).toContain(`embedded source, for Metal refuses ${metallib}`);
  });

  const broken: [name: string, message: string][] = [
    ["over_release", "release was sent to a MTLBuffer that was freed"],
    ["written_behind_the_end", "byte 4159 of a buffer of 4096 was written"],
    ["use_after_free", "contents was sent to a MTLBuffer that was freed"],
    ["unknown_selector", "-[MTLCommandQueue contents]: unrecognized selector"],
    ["class_message_to_an_object", "-[NSString stringWithUTF8String:]: unrecognized selector"],
    ["null_string", "NULL throws an NSException"],
    ["wrong_class", "a MTLCommandQueue, expected a NSString"],
    ["no_pool", "a NSString is autoreleased on a thread that has no pool"],
    ["pool_popped_twice", "this pool is not open on this thread"],
    ["empty_buffer", "0 is not between 1 and maxBufferLength"],
    ["half_a_page", "2048 bytes at"],
    ["pages_given_back_too_early", "add: the pages of the buffer at 1 were given back before the work that uses them"],
    ["fast_math", "fast math is on"],
    ["fast_functions", "math functions are fast"],
    ["language_version", "the language version is not set to 3.0"],
    ["commit_twice", "the command buffer was committed before"],
    ["commit_while_encoding", "an encoder of the command buffer is still open"],
    ["two_encoders", "another encoder of the command buffer is open"],
    ["encode_after_commit", "the command buffer was committed"],
    ["encode_after_end", "after endEncoding"],
    ["no_end", "an encoder was freed without endEncoding"],
    ["wait_without_commit", "the command buffer was not committed"],
    ["no_pipeline", "no pipeline is set"],
    ["unbound", "add: nothing was bound at buffer 2"],
    ["bound_for_an_earlier_dispatch", "add: nothing was bound at buffer 0"],
    ["too_many_threads", "add: 2048 threads in a threadgroup, of 1024"],
    ["long_bytes", "5000 bytes, expected 1 to 4096"],
    ["offset_past_the_end", "offset 4096 in a buffer of 4096 bytes"],
    ["freed_too_early", "add: the buffer at 1 was freed before the command buffer that uses it was done"],
    ["forgotten_barrier", "z was made of y before y was written"],
    ["not_resident", "add: the buffer at 2 is not in the residency set"],
    ["freed_while_resident", "a buffer was freed while it is in a residency set"],
    ["too_many_under_way", "64 are under way"],
  ];

  test.each(broken)("the fake Metal notices: %s", (name, message) => {
    const { ended, stderr } = run(paths.misuses, name);
    expect(stderr).toContain(message);
    expect(ended).toBe("SIGABRT");
  });

  test("the fake Metal notices: leak", () => {
    expect(run(paths.misuses, "leak")).toEqual({ ended: 86, stdout: "", stderr: "fake Metal: 1 NSString leaked. \n" });
  });
});
