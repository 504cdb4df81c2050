// Writing HTML: escaping and attributes.

const ENTITY: Record<string, string> = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' };

export const escape = (s: unknown): string => String(s ?? '').replace(/[&<>"]/g, (c) => ENTITY[c]!);

type Value = string | number | boolean | null | undefined;

/** ` id="x" hidden`; nothing for undefined, null, false and the empty string. */
export const attributes = (values: Record<string, Value>): string =>
  Object.entries(values)
    .filter(([, v]) => v !== undefined && v !== null && v !== false && v !== '')
    .map(([name, v]) => (v === true ? ` ${name}` : ` ${name}="${escape(v)}"`))
    .join('');

export const element = (tag: string, values: Record<string, Value>, inner: string): string =>
  `<${tag}${attributes(values)}>${inner}</${tag}>`;
