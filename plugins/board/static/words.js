// Formats times and numbers as text.
import { h } from "./draw.js";

export function age(ms) {
  const s = Math.max(0, (Date.now() - ms) / 1000);
  for (const [unit, length] of [["day", 86400], ["hour", 3600], ["minute", 60]]) {
    const n = Math.floor(s / length);
    if (n) return `${n} ${unit}${n > 1 ? "s" : ""}`;
  }
  return "";
}

export const ago = (ms) => age(ms) ? `${age(ms)} ago` : "just now";
export const when = (ms) => h("time", { datetime: new Date(ms).toISOString(), title: new Date(ms).toLocaleString() }, ago(ms));
export const count = (n) => n.toLocaleString("en");
