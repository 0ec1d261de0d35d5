// Failures in OpenAI's shape: a status, a type, and the parameter that is at fault.
import type { PlainError } from "./protocol.ts";

/** A failure that a client is told of. */
export class HttpError extends Error {
  readonly status: number;
  readonly param: string | null;
  readonly code: string | null;
  readonly headers: Readonly<Record<string, string>>;

  constructor(
    status: number,
    message: string,
    {
      param = null,
      code = null,
      headers = {},
    }: { param?: string | null; code?: string | null; headers?: Record<string, string> } = {},
  ) {
    super(message);
    this.status = status;
    this.param = param;
    this.code = code;
    this.headers = headers;
  }

  get body() {
    const type =
      this.status >= 500 ? "server_error" : this.status === 429 ? "rate_limit_error" : "invalid_request_error";
    return { error: { message: this.message, type, param: this.param, code: this.code } };
  }

  response(headers: Readonly<Record<string, string>> = {}): Response {
    return Response.json(this.body, { status: this.status, headers: { ...headers, ...this.headers } });
  }
}

/** What went wrong in a model's thread, as a client is told of it. */
export function fromHost({ message, code, busy }: PlainError): HttpError {
  if (busy) return new HttpError(429, message, { code: "queue_full", headers: { "retry-after": "1" } });
  if (code === "invalid")
    return new HttpError(400, message, { code: message.includes("fit") ? "context_length_exceeded" : null });
  if (code === "unsupported") return new HttpError(400, message, { code: "unsupported" });
  return failureOf({ message, code, busy });
}

/** What no request is to blame for, as that a model can't be loaded. */
export function failureOf({ message, code }: PlainError): HttpError {
  return new HttpError(code === "out_of_memory" ? 503 : 500, message, { code: code ?? null });
}
