// The button on a panel of code.
import { all, one } from './dom.ts';

async function copyText(words: string): Promise<void> {
  if (navigator.clipboard) return navigator.clipboard.writeText(words);
  const field = document.createElement('textarea'); // pages opened from the disk have no clipboard interface in some browsers
  field.value = words;
  document.body.append(field);
  field.select();
  document.execCommand('copy');
  field.remove();
}

export function copy(): void {
  for (const button of all<HTMLButtonElement>('.copy')) {
    button.onclick = async () => {
      try {
        await copyText(one('pre', button.parentElement!)?.textContent?.trimEnd() ?? '');
        button.textContent = 'Copied';
      } catch {
        button.textContent = 'Not allowed';
      }
      setTimeout(() => {
        button.textContent = 'Copy';
      }, 1200);
    };
  }
}
