// The type of the native libraries, and of the kernels beside them, as modules: what package.json's `imports`
// name, imported as files.

declare module "#library/*" {
  const path: string;
  export default path;
}

declare module "#kernels/*" {
  const path: string;
  export default path;
}
