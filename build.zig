//! Builds libbunsandbytes as it ships, for any target, from any machine: `zig build --release=fast
//! [-Dtarget=aarch64-macos.13.1]`. Each target's goes into a folder that has the platform's name in JavaScript:
//! zig-out/lib/darwin-arm64. What is compiled, and how, stands in csrc/sources.json, which scripts/compile.ts reads
//! too.
const std = @import("std");

const Sources = struct {
    flags: []const []const u8,
    sources: []const []const u8,
    forms: []const u8,
    instructionSets: struct { x64: []const InstructionSet, arm64: []const InstructionSet },
};

/// The CPU's forms are compiled once for each: csrc/cpu/dispatch.c lists the same names, best first.
const InstructionSet = struct { name: []const u8, cpu: []const u8 };

pub fn build(b: *std.Build) void {
    // The baseline processor, so that a library built here runs on every machine of its kind: fast code is in the
    // forms.
    const target = b.standardTargetOptions(.{ .default_target = .{ .cpu_model = .baseline } });
    const optimize = b.standardOptimizeOption(.{ .preferred_optimize_mode = .ReleaseFast });
    const listed = std.json.parseFromSliceLeaky(Sources, b.allocator, @embedFile("csrc/sources.json"), .{
        .ignore_unknown_fields = true,
    }) catch
        @panic("csrc/sources.json does not say what to compile");
    const sets = if (target.result.cpu.arch == .aarch64) listed.instructionSets.arm64 else listed.instructionSets.x64;

    var flags: std.ArrayList([]const u8) = .empty;
    flags.appendSlice(b.allocator, listed.flags) catch @panic("out of memory");
    for (sets) |set| flags.append(b.allocator, b.fmt("-DFORMS_{s}", .{set.name})) catch @panic("out of memory");

    const module = b.createModule(.{
        .target = target,
        .optimize = optimize,
        .link_libc = true,
        .strip = optimize != .debug,
    });
    module.addCSourceFiles(.{ .root = b.path("csrc"), .files = listed.sources, .flags = flags.items });
    // A copy, because its path changes with its contents: zig does not notice when an embedded file does.
    module.addEmbedPath(b.addWriteFiles().addCopyDirectory(b.path("metal"), "", .{}));
    for (sets) |set| module.addObject(formsObject(b, target, optimize, listed, set));

    const library = b.addLibrary(.{ .name = "bunsandbytes", .root_module = module, .linkage = .dynamic });
    const os = if (target.result.os.tag == .macos) "darwin" else @tagName(target.result.os.tag);
    const arch = if (target.result.cpu.arch == .aarch64) "arm64" else "x64";
    const folder: std.Build.InstallDir = .{ .custom = b.fmt("lib/{s}-{s}", .{ os, arch }) };
    b.getInstallStep().dependOn(&b.addInstallArtifact(library, .{ .dest_dir = .{ .override = folder } }).step);
}

/// One instruction set's forms. The object exports a single table, cpu_forms_<name>.
fn formsObject(
    b: *std.Build,
    target: std.Build.ResolvedTarget,
    optimize: std.builtin.OptimizeMode,
    listed: Sources,
    set: InstructionSet,
) *std.Build.Step.Compile {
    const triple = target.query.zigTriple(b.allocator) catch @panic("out of memory");
    const query = std.Target.Query.parse(.{
        .arch_os_abi = triple,
        .cpu_features = set.cpu,
    }) catch @panic("no such processor");
    const module = b.createModule(.{ .target = b.resolveTargetQuery(query), .optimize = optimize, .link_libc = true });
    const flags = std.mem.concat(b.allocator, []const u8, &.{
        listed.flags,
        &.{b.fmt("-DISA={s}", .{set.name})},
    }) catch @panic("out of memory");
    module.addCSourceFile(.{ .file = b.path(b.fmt("csrc/{s}", .{listed.forms})), .flags = flags });
    return b.addObject(.{ .name = b.fmt("forms-{s}", .{set.name}), .root_module = module });
}
