// Notes fold into the line where there is no margin for them.
import { all } from './dom.ts';

export function notes(): void {
  for (const ref of all<HTMLAnchorElement>('.ref')) {
    ref.onclick = (event) => {
      event.preventDefault();
      document.getElementById(decodeURIComponent(ref.hash.slice(1)))?.classList.toggle('open');
    };
  }
}
