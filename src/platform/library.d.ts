// Owns the type of the native libraries as modules: what package.json's `imports` name, imported as files.

declare module "#library/*" {
  const path: string;
  export default path;
}
