// What a server counts, in Prometheus' text format.
import type { EngineState } from "./engine.ts";

/** Upper ends of a histogram's buckets, in seconds. */
const seconds = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60];

class Histogram {
  readonly #counts = new Array<number>(seconds.length).fill(0);
  #sum = 0;
  #count = 0;

  observe(value: number): void {
    const at = seconds.findIndex((end) => value <= end);
    if (at >= 0) this.#counts[at]!++;
    this.#sum += value;
    this.#count++;
  }

  *lines(name: string): Iterable<string> {
    let below = 0;
    for (const [i, end] of seconds.entries()) {
      below += this.#counts[i]!;
      yield `${name}_bucket{le="${end}"} ${below}`;
    }
    yield `${name}_bucket{le="+Inf"} ${this.#count}`;
    yield `${name}_sum ${this.#sum}`;
    yield `${name}_count ${this.#count}`;
  }
}

export class Metrics {
  readonly #responses = new Map<number, number>();
  readonly #firstToken = new Histogram();
  readonly #whole = new Histogram();
  #promptTokens = 0;
  #cachedTokens = 0;
  #completionTokens = 0;
  #cancelled = 0;

  response(status: number): void {
    this.#responses.set(status, (this.#responses.get(status) ?? 0) + 1);
  }

  firstToken(ms: number): void {
    this.#firstToken.observe(ms / 1000);
  }

  text(ms: number, usage: { promptTokens: number; cachedTokens: number; completionTokens: number }): void {
    this.#whole.observe(ms / 1000);
    this.#promptTokens += usage.promptTokens;
    this.#cachedTokens += usage.cachedTokens;
    this.#completionTokens += usage.completionTokens;
  }

  cancelled(): void {
    this.#cancelled++;
  }

  /** @param engines what each loaded model's engine is at */
  page(engines: readonly (readonly [model: string, state: EngineState])[]): string {
    const lines: string[] = [];
    const metric = (name: string, type: "counter" | "gauge" | "histogram", help: string, rows: Iterable<string>) =>
      lines.push(`# HELP bunsandbytes_${name} ${help}`, `# TYPE bunsandbytes_${name} ${type}`, ...rows);
    const one = (name: string, type: "counter" | "gauge", help: string, value: number) =>
      metric(name, type, help, [`bunsandbytes_${name} ${value}`]);
    const perModel = (
      name: string,
      help: string,
      of: (state: EngineState) => number,
      type: "counter" | "gauge" = "gauge",
    ) =>
      metric(
        name,
        type,
        help,
        engines.map(([model, state]) => `bunsandbytes_${name}{model=${JSON.stringify(model)}} ${of(state)}`),
      );

    metric(
      "responses_total",
      "counter",
      "Responses by status.",
      [...this.#responses].map(([status, count]) => `bunsandbytes_responses_total{status="${status}"} ${count}`),
    );
    one("prompt_tokens_total", "counter", "Tokens of prompts.", this.#promptTokens);
    one("cached_tokens_total", "counter", "Of those, tokens that the cache held already.", this.#cachedTokens);
    one("completion_tokens_total", "counter", "Tokens written.", this.#completionTokens);
    one("cancelled_total", "counter", "Texts whose client left.", this.#cancelled);
    metric(
      "first_token_seconds",
      "histogram",
      "From a request to its first token.",
      this.#firstToken.lines("bunsandbytes_first_token_seconds"),
    );
    metric(
      "text_seconds",
      "histogram",
      "From a request to the end of its text.",
      this.#whole.lines("bunsandbytes_text_seconds"),
    );
    perModel("queue_length", "Texts that wait for a place.", ({ waiting }) => waiting);
    perModel("batch_size", "Texts that are being written.", ({ running }) => running);
    perModel("cache_tokens", "Tokens in the cache.", ({ cachedTokens }) => cachedTokens);
    perModel("cache_capacity_tokens", "Tokens that the cache may hold.", ({ capacityTokens }) => capacityTokens);
    perModel("steps_total", "Steps of the model.", ({ steps }) => steps, "counter");
    return `${lines.join("\n")}\n`;
  }
}
