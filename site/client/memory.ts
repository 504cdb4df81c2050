// What the reader did stays in this browser: parts read, predictions, light or dark. Without storage nothing is kept.

export interface Memory {
  read: Record<string, boolean>;
  said: Record<string, string>;
  theme?: string;
}

const NAME = 'book';

function load(): Memory {
  const empty: Memory = { read: {}, said: {} };
  try {
    const kept: unknown = JSON.parse(localStorage.getItem(NAME) ?? '{}');
    return typeof kept === 'object' && kept ? { ...empty, ...kept } : empty;
  } catch {
    return empty;
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
