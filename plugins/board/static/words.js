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

// A time to come, with the clock: "in 5 hours, 02:00".
export function soon(ms) {
  const minutes = Math.round((ms - Date.now()) / 60000), hours = Math.round(minutes / 60), days = Math.floor(hours / 24);
  const away = minutes < 1 ? "due now" : minutes < 60 ? `in ${minutes} min` : hours < 48 ? `in ${hours} h` : `in ${days} days`;
  const clock = new Date(ms).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  return h("time", { datetime: new Date(ms).toISOString(), title: new Date(ms).toLocaleString() }, minutes < 1 ? away : `${away}, ${clock}`);
}

export const ago = (ms) => age(ms) ? `${age(ms)} ago` : "just now";
export const when = (ms) => h("time", { datetime: new Date(ms).toISOString(), title: new Date(ms).toLocaleString() }, ago(ms));
export const count = (n) => n.toLocaleString("en");

// A length of time: "40 s", "12 min", "3.5 h".
export const lasting = (s) => s < 60 ? `${Math.round(s)} s` : s < 3600 ? `${Math.round(s / 60)} min` : `${(s / 3600).toFixed(1)} h`;
export const size = (bytes) => bytes > 2 ** 30 ? `${(bytes / 2 ** 30).toFixed(1)} GiB` : bytes > 2 ** 20 ? `${(bytes / 2 ** 20).toFixed(1)} MiB` : `${Math.ceil(bytes / 1024)} KiB`;
