// Preloaded by the tests while lines are counted: what they start from here on counts too.
process.env.BUN_OPTIONS = `--preload=${import.meta.dir}/processes.ts`;
