// What is kept is read with suspicion: an entry of another shape, or a damaged one, counts as none.

export interface Memory {
  read: Record<string, boolean>;
  said: Record<string, string>;
  theme?: string;
}

const THEMES = ['auto', 'light', 'dark'];

const anything = (_: unknown): _ is unknown => true;

function only<T>(kept: unknown, is: (value: unknown) => value is T): Record<string, T> {
  const whole = typeof kept === 'object' && kept && !Array.isArray(kept) ? Object.entries(kept) : [];
  return Object.fromEntries(whole.filter((entry): entry is [string, T] => is(entry[1])));
}

export function cleaned(kept: unknown): Memory {
  const { read, said, theme } = only(kept, anything);
  return {
    read: only(read, (value) => typeof value === 'boolean'),
    said: only(said, (value) => typeof value === 'string'),
    ...(THEMES.includes(theme as string) ? { theme: theme as string } : {}),
  };
}
