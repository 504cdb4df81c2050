// Tabs work without script; with it, the same choice is made in every group of the page that offers it.
import { all } from './dom.ts';

export function tabs(): void {
  const inputs = all<HTMLInputElement>('.tabs .segments input');
  for (const input of inputs) {
    input.addEventListener('change', () => {
      for (const other of inputs)
        if (other !== input && other.value === input.value && other.name !== input.name) other.checked = true;
    });
  }
}
