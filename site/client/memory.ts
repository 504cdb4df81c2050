// What the reader did stays in this browser: parts read, predictions, light or dark. Without storage nothing is kept.
import { cleaned, type Memory } from './kept.ts';

// Two books on one host share its storage: each keeps what is its own under the name that its pages carry.
const NAME = `book:${document.documentElement.dataset.book ?? ''}:${location.pathname.replace(/[^/]*$/, '')}`;

function load(): Memory {
  try {
    return cleaned(JSON.parse(localStorage.getItem(NAME) ?? '{}'));
  } catch {
    return cleaned({});
  }
}

export const memory: Memory = load();

export function keep(): void {
  try {
    localStorage.setItem(NAME, JSON.stringify(memory));
  } catch {
    /* storage is off */
  }
}
