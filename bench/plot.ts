// The plot of the comparison with peers: dots on a logarithmic scale, drawn by Vega-Lite, which is installed into
// .peers when a plot is first drawn.
import { pathToFileURL } from "node:url";
import { stop } from "../scripts/run.ts";
import { type Class, classes } from "./peers/contestants.ts";
import { installJavaScript, modulesFolder } from "./peers/install.ts";
import { oursBeside, type PeerRecord, ratio, select, warning } from "./peers/results.ts";

/** The parts of the two packages that are used. */
interface VegaLite {
  compile(spec: object): { spec: object };
}
interface Vega {
  parse(spec: object): object;
  View: new (runtime: object, options: object) => { toSVG(): Promise<string> };
}

const load = async <T>(name: string): Promise<T> =>
  await import(pathToFileURL(Bun.resolveSync(name, modulesFolder)).href);

/** A colour for each peer, of Okabe and Ito's palette, which is told apart by those who see colours differently. */
const colours = {
  bitsandbytes: "#D55E00",
  OpenVINO: "#0072B2",
  onnxruntime: "#009E73",
  "onnxruntime-node": "#56B4E9",
  ggml: "#CC79A7",
  torch: "#E69F00",
};

const titleOf = (kind: Class) => `${kind}, beside ${classes[kind].ours}`;

function specification(record: PeerRecord): object {
  const contests = ["M = 1, cold", "M = 1", "M = 4", "M = 32", "M = 512"];
  const values = select(record, { threads: 1 }).flatMap((result) => {
    const { contest, entrant, wrong } = result;
    const beside = oursBeside(record, result);
    if (!contests.includes(contest) || entrant.peer === "bunsandbytes" || !beside || wrong) return [];
    const kind = titleOf(entrant.class);
    return [{ contest, kind, peer: entrant.peer, format: entrant.format, times: ratio([result], beside) }];
  });
  const present = Object.entries(colours).filter(([peer]) => values.some((value) => value.peer === peer));
  const formats = ["NF4", "int4", "Q4_0", "Q4_K", "IQ4_NL", "dense"].filter((format) =>
    values.some((value) => value.format === format),
  );
  const { processor } = record.machine;
  const busy = warning(record);
  return {
    title: {
      text: "How many times as long others take",
      subtitle: [
        `x [M, 4096] · w [4096, 4096]ᵀ, one thread, ${processor}; ${record.date.slice(0, 10)}`,
        ...(busy ? [busy] : []),
      ],
      anchor: "start",
    },
    background: "white",
    data: { values },
    facet: {
      row: {
        field: "kind",
        title: null,
        sort: (Object.keys(classes) as Class[]).map(titleOf),
        header: { labelAngle: 0, labelAlign: "left", labelFontSize: 11 },
      },
    },
    spec: {
      width: 460,
      height: 120,
      layer: [
        { mark: { type: "rule", color: "#222", strokeWidth: 1.5 }, encoding: { x: { datum: 1 } } },
        {
          mark: { type: "point", filled: true, size: 70, opacity: 0.9 },
          encoding: {
            x: {
              field: "times",
              type: "quantitative",
              scale: { type: "log", nice: false, padding: 12 },
              title: "times as long as bunsandbytes, which is the line at 1",
              axis: { values: [0.25, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500], format: "~g" },
            },
            y: { field: "contest", type: "nominal", sort: contests, title: null },
            color: {
              field: "peer",
              title: null,
              scale: { domain: present.map(([peer]) => peer), range: present.map(([, colour]) => colour) },
            },
            shape: {
              field: "format",
              title: null,
              scale: {
                domain: formats,
                range: ["circle", "square", "triangle-up", "triangle-down", "diamond", "cross"],
              },
            },
          },
        },
      ],
    },
    config: { font: "sans-serif", axis: { grid: true, gridColor: "#ddd" }, view: { stroke: "#ccc" } },
  };
}

/** The plot of a record as the text of an SVG file. */
export async function plot(record: PeerRecord): Promise<string> {
  const reason = installJavaScript("vega@6.4.0") ?? installJavaScript("vega-lite@6.5.0");
  if (reason !== undefined) stop(`The plot needs Vega, which could not be installed: ${reason}`);
  const [vega, vegaLite] = await Promise.all([load<Vega>("vega"), load<VegaLite>("vega-lite")]);
  const view = new vega.View(vega.parse(vegaLite.compile(specification(record)).spec), { renderer: "none" });
  return `${await view.toSVG()}\n`;
}
