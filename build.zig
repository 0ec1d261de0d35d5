//! Builds libbunsandbytes for any target, from any machine: `zig build --release=fast [-Dtarget=aarch64-macos.13.1]`.
//! Each target's goes into a folder that has the platform's name in JavaScript: zig-out/lib/darwin-arm64.
const std = @import("std");

const warnings = [_][]const u8{ "-std=c23", "-Wall", "-Wextra", "-Wpedantic", "-Wmissing-prototypes", "-Werror", "-fvisibility=hidden", "-fno-math-errno" };

const sources = [_][]const u8{
    "error.c",
    "device.c",
    "buffer.c",
    "handle.c",
    "tensor.c",
    "codebook.c",
    "quantized.c",
    "cache.c",
    "ops/cast.c",
    "ops/quantize.c",
    "ops/scales.c",
    "ops/dequantize.c",
    "ops/matmul.c",
    "ops/matmul_backward.c",
    "ops/add.c",
    "ops/embedding.c",
    "ops/layer_norm.c",
    "ops/rms_norm.c",
    "ops/activate.c",
    "ops/attention.c",
    "ops/topk.c",
    "ops/scatter_add.c",
    "ops/join.c",
    "ops/launch.c",
    "ops/int8_quantize.c",
    "ops/int8_matmul.c",
    "ops/compare.c",
    "ops/optimizer.c",
    "ops/gguf.c",
    "cpu/dispatch.c",
    "cpu/pool.c",
    "gpu/kernels.c",
    "gpu/metal.c",
    "gpu/metal_kernels.c",
    "gpu/metal_memory.c",
    "gpu/metal_objc.c",
    "gpu/metal_queue.c",
};

/// The CPU's forms, compiled once for each instruction set: csrc/cpu/dispatch.c lists the same names, best first.
const Isa = struct { name: []const u8, cpu: []const u8 };
const x86_isas = [_]Isa{
    .{ .name = "base", .cpu = "x86_64" },
    .{ .name = "avx2", .cpu = "haswell" },
    .{ .name = "avx512", .cpu = "skylake_avx512" },
    .{ .name = "avx512vnni", .cpu = "cascadelake" },
};
const arm_isas = [_]Isa{
    .{ .name = "neon", .cpu = "generic" },
    .{ .name = "dotprod", .cpu = "generic+dotprod" },
    .{ .name = "i8mm", .cpu = "generic+dotprod+i8mm" },
};

pub fn build(b: *std.Build) void {
    // The baseline processor, so that a library built here runs on every machine of its kind: fast code is in the forms.
    const target = b.standardTargetOptions(.{ .default_target = .{ .cpu_model = .baseline } });
    const optimize = b.standardOptimizeOption(.{ .preferred_optimize_mode = .ReleaseFast });

    const module = b.createModule(.{ .target = target, .optimize = optimize, .link_libc = true, .strip = optimize != .debug });
    module.addCSourceFiles(.{ .root = b.path("csrc"), .files = &sources, .flags = &warnings });
    // A copy, because its path changes with its contents: zig does not notice when an embedded file does.
    module.addEmbedPath(b.addWriteFiles().addCopyDirectory(b.path("metal"), "", .{}));
    const isas: []const Isa = if (target.result.cpu.arch == .aarch64) &arm_isas else &x86_isas;
    for (isas) |isa| module.addObject(formsObject(b, target, optimize, isa));

    const library = b.addLibrary(.{ .name = "bunsandbytes", .root_module = module, .linkage = .dynamic });
    const os = if (target.result.os.tag == .macos) "darwin" else @tagName(target.result.os.tag);
    const arch = if (target.result.cpu.arch == .aarch64) "arm64" else "x64";
    const folder: std.Build.InstallDir = .{ .custom = b.fmt("lib/{s}-{s}", .{ os, arch }) };
    b.getInstallStep().dependOn(&b.addInstallArtifact(library, .{ .dest_dir = .{ .override = folder } }).step);
}

/// One instruction set's forms. The object exports a single table, cpu_forms_<name>.
fn formsObject(b: *std.Build, target: std.Build.ResolvedTarget, optimize: std.builtin.OptimizeMode, isa: Isa) *std.Build.Step.Compile {
    const triple = target.query.zigTriple(b.allocator) catch @panic("out of memory");
    const query = std.Target.Query.parse(.{ .arch_os_abi = triple, .cpu_features = isa.cpu }) catch @panic("no such processor");
    const module = b.createModule(.{ .target = b.resolveTargetQuery(query), .optimize = optimize, .link_libc = true });
    const define = b.fmt("-DISA={s}", .{isa.name});
    module.addCSourceFile(.{ .file = b.path("csrc/cpu/isa.c"), .flags = &(warnings ++ [_][]const u8{define}) });
    return b.addObject(.{ .name = b.fmt("forms-{s}", .{isa.name}), .root_module = module });
}
