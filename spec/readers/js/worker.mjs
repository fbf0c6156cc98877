/** Examines files beside the page, which stays responsive. A message is the bytes; the answer is a summary or an error. */
import { summarize } from "./summary.mjs";

self.addEventListener("message", ({ data }) => {
  try {
    self.postMessage({ summary: summarize(new Uint8Array(data)) });
  } catch (error) {
    self.postMessage({ error: String(error.message) });
  }
});
