// The targets that this library sets itself against its peers, and whether a run meets them.
import { ours } from "./contestants.ts";
import { median, type PeerRecord, type Result, ratio, select } from "./results.ts";

export interface Target {
  readonly text: string;
  /** Ratios are at least this, in peers' time over ours; a time, where `unit` says so, is at most this. */
  readonly wanted: number;
  readonly found: number;
  readonly unit: "×" | "µs";
  readonly holds: boolean;
}

type Wanted = Parameters<typeof select>[1];

/** Ours against the fastest of the peers that are picked; nothing where a side did not run. */
function against(record: PeerRecord, text: string, wanted: number, mine: Wanted, peers: Wanted[]): Target[] {
  const [result] = select(record, { threads: 1, ...mine, peer: "bunsandbytes" });
  const contest = { threads: 1, contest: mine.contest! };
  const others = peers
    .flatMap((peer) => select(record, { ...contest, ...peer }))
    .filter(({ entrant, wrong }) => entrant.peer !== "bunsandbytes" && !wrong);
  if (!result || !others.length) return [];
  const found = ratio(others, result);
  return [{ text: `${mine.contest}: ${text}`, wanted, found, unit: "×", holds: found >= wanted }];
}

function productTargets(record: PeerRecord): Target[] {
  const [highest, high, medium] = ours.map(({ variant }) => variant);
  const eight: Wanted[] = [{ peer: "onnxruntime", variant: "accuracy4" }, { peer: "ggml" }];
  return [
    ...against(record, "highest against OpenVINO", 1.5, { contest: "M = 1", variant: highest! }, [
      { peer: "OpenVINO" },
    ]),
    ...against(record, "highest against bitsandbytes", 1.5, { contest: "M = 1", variant: highest! }, [
      { peer: "bitsandbytes", variant: "float32" },
    ]),
    ...["M = 32", "M = 512"].flatMap((contest) =>
      against(record, "highest, level with the best of fp32", 0.95, { contest, variant: highest! }, [
        { class: "fp32" },
      ]),
    ),
    ...["M = 1", "M = 4", "M = 32", "M = 512"].flatMap((contest) => [
      ...against(record, "high against bitsandbytes in bfloat16", 2, { contest, variant: high! }, [
        { peer: "bitsandbytes", variant: "bfloat16" },
      ]),
      ...against(record, "medium against the best of onnxruntime and ggml", 1.3, { contest, variant: medium! }, eight),
    ]),
    ...ours.flatMap(({ variant }) =>
      against(record, `${variant} against the best of all`, 1.3, { contest: "M = 1, cold", variant }, [{}]),
    ),
  ];
}

function otherTargets(record: PeerRecord): Target[] {
  const wanted: [contest: string, least: number][] = [
    ["quantise 4-bit", 100],
    ["dequantise 4-bit", 8],
    ["quantise 8-bit", 15],
    ["Adam8bit, 16.8 M parameters", 20],
    ["LLM.int8(), M = 32", 1.5],
    ["LLM.int8(), M = 512", 1.5],
  ];
  return wanted.flatMap(([contest, least]) =>
    against(record, "against bitsandbytes", least, { contest }, [{ peer: "bitsandbytes" }]),
  );
}

/** Two threads against one, where one takes more than a millisecond. */
function scalingTargets(record: PeerRecord): Target[] {
  return select(record, { peer: "bunsandbytes", threads: 1 }).flatMap((one) => {
    const { contest, entrant } = one;
    const [two] = select(record, { contest, threads: 2, peer: "bunsandbytes", variant: entrant.variant });
    if (!two || median(one.rounds) <= 1) return [];
    const found = ratio([one], two);
    return [
      {
        text: `${contest}: ${entrant.variant}, two threads`,
        wanted: 1.8,
        found,
        unit: "×" as const,
        holds: found >= 1.8,
      },
    ];
  });
}

/** What a call costs beside its kernel, whose time is that of a product 64 times as large, divided by 64. */
function callTargets(record: PeerRecord): Target[] {
  const [small, large] = ["M = 1, [64, 64]", "M = 1, [4096, 64]"].map(
    (contest) => select(record, { contest, threads: 1, peer: "bunsandbytes", variant: "highest" })[0],
  ) as [Result?, Result?];
  if (!small || !large) return [];
  const found = median(small.rounds.map((ms, round) => 1000 * (ms - large.rounds[round]! / 64)));
  return [{ text: "a call of matmul4bit beside its kernel", wanted: 1, found, unit: "µs", holds: found < 1 }];
}

/** Every target that the record has the figures for. */
export function targets(record: PeerRecord): Target[] {
  return [...productTargets(record), ...otherTargets(record), ...scalingTargets(record), ...callTargets(record)];
}
