// The words of the live view in the languages of the pack.
const short = (value) => Number(value.toPrecision(3));

const EN = {
  estimate: "estimate",
  whole: "whole picture and crops that are scored",
  crops: "crops that are scored",
  score: "score",
  push: "push and CFG, % of the prediction",
  pushName: "push",
  step: ({ step, steps }) => `step ${step} of ${steps}`,
  strong: ({ count, step, times }) =>
    `The push was larger than CFG's in ${count} ${count === 1 ? "step" : "steps"}, first at step ${step} (up to ` +
    `${short(times)} times): the objective draws more than the prompt there. If the picture breaks, lower strength or start later.`,
  calm: ({ share }) => `The push is ${Number((100 * share).toPrecision(2))} % of CFG's.`,
  alone: "cfg 1: there is no CFG to compare the push with.",
  loss: "loss",
  norm: "norm of the token (dashed: of words)",
  training: ({ step, last, loss, speed }) =>
    `step ${step} of ${last}: loss ${short(loss)}${speed ? `, ${short(speed)} steps/s` : ""}`,
  weights: "weight over the steps",
  text: "from the last run",
};
const JA = {
  estimate: "推定画像",
  whole: "採点した全体と切り出し",
  crops: "採点した切り出し",
  score: "スコア",
  push: "押す力と CFG(予測に対する %)",
  pushName: "押す力",
  step: ({ step, steps }) => `ステップ ${step} / ${steps}`,
  strong: ({ count, step, times }) =>
    `押す力が ${count} ステップで CFG を超えました(最初はステップ ${step}、最大 ${short(times)} 倍)。` +
    `そこではプロンプトより目的関数のほうが絵を決めています。崩れるなら、強さを下げるか開始を遅らせてください。`,
  calm: ({ share }) => `押す力は CFG の ${Number((100 * share).toPrecision(2))} % です。`,
  alone: "cfg 1 なので、比べる CFG がありません。",
  loss: "損失",
  norm: "トークンのノルム(破線は単語)",
  training: ({ step, last, loss, speed }) =>
    `ステップ ${step} / ${last}: 損失 ${short(loss)}${speed ? `、毎秒 ${short(speed)} ステップ` : ""}`,
  weights: "ステップごとの重み",
  text: "前回の実行から",
};

export const words = (locale) => (String(locale ?? "en").startsWith("ja") ? JA : EN);
