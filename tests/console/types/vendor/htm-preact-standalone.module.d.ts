// What the console uses of the vendored file.
export function html(strings: TemplateStringsArray, ...values: any[]): any;
export function render(what: any, into: Element): void;
export function useState<T>(initial: T | (() => T)): [T, (next: T | ((before: T) => T)) => void];
export function useReducer<S, A>(reduce: (state: S, action: A) => S, initial: S): [S, (action: A) => void];
export function useEffect(work: () => void | (() => void), inputs?: unknown[]): void;
export function useLayoutEffect(work: () => void | (() => void), inputs?: unknown[]): void;
export function useRef<T>(initial: T): { current: T };
export function useMemo<T>(make: () => T, inputs: unknown[]): T;
export function useCallback<F>(callback: F, inputs: unknown[]): F;
export function useErrorBoundary(note?: (error: unknown) => void): [unknown, () => void];
