// Auto, Light, Dark. The page's head has set the kept choice already, before the first paint.
import { all } from './dom.ts';
import { keep, memory } from './memory.ts';

export function theme(): void {
  for (const input of all<HTMLInputElement>('.theme input')) {
    input.checked = input.value === (memory.theme ?? 'auto');
    input.onchange = () => {
      memory.theme = input.value;
      document.documentElement.dataset.theme = input.value;
      keep();
    };
  }
}
