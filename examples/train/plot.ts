// How examples/train.ts shows curves: as a line of text, and as a picture.

/** A curve in one line of text, from 0 to the most. */
export function sparkline(values: readonly number[], columns = 60): string {
  const most = Math.max(...values);
  return Array.from({ length: columns }, (_, column) => {
    const value = values[Math.floor((column / columns) * values.length)]!;
    return "▁▂▃▄▅▆▇█"[Math.min(7, Math.floor((8 * value) / most))];
  }).join("");
}

/** Curves over their steps as an SVG picture; the first is drawn broad, so that one on top of it does not hide it. */
export function plot(curves: Readonly<Record<string, readonly number[]>>, caption: string): string {
  const all = Object.values(curves).flat();
  const [most, steps] = [Math.max(...all), all.length / Object.keys(curves).length];
  const at = (loss: number, step: number) => `${50 + (500 * step) / steps},${(310 - (290 * loss) / most).toFixed(1)}`;
  const marks = Array.from({ length: Math.floor(most) + 1 }, (_, loss) => {
    const y = 310 - (290 * loss) / most;
    return `<path d="M50,${y}H550" stroke="#ddd"/><text x="42" y="${y + 4}" text-anchor="end">${loss}</text>`;
  });
  const lines = Object.entries(curves).map(([name, losses], i) => {
    const style = i === 0 ? 'stroke="#9cf" stroke-width="6"' : 'stroke="#024" stroke-width="1.5"';
    const key = `<path d="M380,${30 + 20 * i}h30" ${style}/><text x="418" y="${34 + 20 * i}">${name}</text>`;
    return `<polyline points="${losses.map(at).join(" ")}" fill="none" ${style}/>${key}`;
  });
  const axis = `<text x="300" y="335" text-anchor="middle">${caption}</text>`;
  const font = 'font-family="sans-serif" font-size="12"';
  return `<svg xmlns="http://www.w3.org/2000/svg" width="570" height="345" ${font}><path d="M0,0H570V345H0z" fill="#fff"/>${marks.join("")}${lines.join("")}${axis}</svg>\n`;
}
