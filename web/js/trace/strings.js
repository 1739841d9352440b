// The words of the trace plot in the languages of the pack.
const percent = (value) => `${Number(value.toPrecision(2))} %`;

const EN = {
  log: "log",
  linear: "linear",
  size: "size in % of the prediction",
  cosine: "cosine to CFG (−1 against, 1 along)",
  before: "dashed: the run before",
  step: "step",
  sigma: "sigma",
  weight: "w",
  hover: "Point at a step for its numbers",
  waiting: "The plot appears here after a run.",
  say: {
    none: () => "No guidance acted in this run.",
    against: ({ name, step }) => `${name} pulls against CFG from step ${step} on.`,
    larger: ({ name, step, count }) =>
      `${name} pushes harder than CFG in ${count} ${count === 1 ? "evaluation" : "evaluations"}, first at step ${step}.`,
    peak: ({ name, step, percent: size }) =>
      `${name} is the largest push: ${percent(size)} of the prediction at step ${step}.`,
  },
};
const JA = {
  log: "対数",
  linear: "線形",
  size: "大きさ(予測に対する %)",
  cosine: "CFG とのコサイン(−1 は逆、1 は同じ向き)",
  before: "破線: 前回の実行",
  step: "ステップ",
  sigma: "シグマ",
  weight: "w",
  hover: "ステップを指すと数値を表示します",
  waiting: "実行するとここにグラフが表示されます。",
  say: {
    none: () => "この実行ではガイダンスは働いていません。",
    against: ({ name, step }) => `${name} はステップ ${step} 以降、CFG と逆向きに働いています。`,
    larger: ({ name, step, count }) => `${name} は ${count} 回の評価で CFG より大きく、最初はステップ ${step} です。`,
    peak: ({ name, step, percent: size }) =>
      `最も大きいのは ${name} で、ステップ ${step} で予測の ${percent(size)} です。`,
  },
};

export const words = (locale) => (String(locale ?? "en").startsWith("ja") ? JA : EN);
export { percent };
