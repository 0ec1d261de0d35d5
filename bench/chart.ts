// The README's picture: a language model's layer, one row, its time and its bytes beside bitsandbytes and a dense
// layer.
import { type PeerRecord, select } from "./peers/results.ts";

interface Bar {
  readonly label: string;
  readonly value: number;
  readonly shown: string;
  readonly ours: boolean;
}

const [width, row, labels, gap] = [720, 26, 250, 14];
const escaped = (text: string) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");

const median = (values: readonly number[]) => values.toSorted((a, b) => a - b)[values.length >> 1]!;

function bars(title: string, list: readonly Bar[], top: number): string {
  const most = Math.max(...list.map(({ value }) => value));
  const lines = list.map(({ label, value, shown, ours }, i) => {
    const y = top + 24 + i * row;
    const length = Math.max(2, ((width - labels - 110) * value) / most);
    return [
      `<text x="${labels - 8}" y="${y + 15}" text-anchor="end">${escaped(label)}</text>`,
      `<rect x="${labels}" y="${y + 3}" width="${length.toFixed(1)}" height="16" rx="2" fill="${ours ? "#0072B2" : "#999"}"/>`,
      `<text x="${(labels + length + 6).toFixed(1)}" y="${y + 15}">${escaped(shown)}</text>`,
    ].join("\n");
  });
  return [`<text x="0" y="${top + 14}" font-weight="bold">${escaped(title)}</text>`, ...lines].join("\n");
}

/** The picture as the text of an SVG file. */
export function layerChart(record: PeerRecord): string {
  const time = (peer: string, variant: string) => {
    const found = select(record, { threads: 1 }).find(
      ({ contest, entrant }) => contest === "M = 1" && entrant.peer === peer && entrant.variant === variant,
    );
    if (!found) throw new Error(`bench/results/peers.json has no ${peer} ${variant} at M = 1`);
    return median(found.rounds);
  };
  const ms = (label: string, value: number, ours = false): Bar => ({
    label,
    value,
    shown: `${value.toPrecision(2)} ms`,
    ours,
  });
  const mb = (label: string, bits: number, ours = false): Bar => {
    const value = (4096 * 4096 * bits) / 8 / 1e6;
    return { label, value, shown: `${value.toFixed(1)} MB`, ours };
  };
  const times = [
    ms("bunsandbytes, NF4", time("bunsandbytes", "high"), true),
    ms("bunsandbytes, NF4, fp32 exact", time("bunsandbytes", "highest"), true),
    ms("torch, dense float32", time("torch", "float32")),
    ms("bitsandbytes, NF4", time("bitsandbytes", "float32")),
  ];
  const sizes = [
    mb("NF4, nested scales", 4.127, true),
    mb("NF4", 4.5, true),
    mb("int8", 8.01, true),
    mb("dense float32", 32),
  ];
  const second = 30 + times.length * row + gap;
  const height = second + 30 + sizes.length * row + 24;
  const { processor } = record.machine;
  const note = `x [1, 4096] · w [4096, 4096]ᵀ, one thread of ${processor}, ${record.date.slice(0, 10)}. Metal is unmeasured.`;
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" font-family="sans-serif" font-size="13">
<rect width="${width}" height="${height}" fill="white"/>
<g transform="translate(12 8)" fill="#222">
${bars("A layer's product with one row", times, 0)}
${bars("Its bytes", sizes, second)}
<text x="0" y="${height - 20}" fill="#666" font-size="11">${escaped(note)}</text>
</g>
</svg>
`;
}
