// What an optimizer can be told for a group of parameters, or for one of them: names, defaults and checks.
import { BnbError } from "../error.ts";
import type { optimizers } from "../native.ts";
import { isFloat, isOptions, show } from "../signature.ts";

/** Every setting of a parameter group. Settings that an optimizer does not use keep their defaults. */
export interface Config {
  /** The learning rate. */
  lr: number;
  /** The decay rates of the averages: two numbers, or three for AdEMAMix. Momentum is `betas[0]`. */
  betas: readonly number[];
  /** Added to the square root of the second moment. */
  eps: number;
  /**
   * Decoupled for Adam, AdamW, AdEMAMix, LAMB and Lion (p shrinks by lr × weightDecay); else weightDecay × p joins the
   * gradient.
   */
  weightDecay: number;
  /** The share of AdEMAMix's slow average. */
  alpha: number;
  /** Steps over which AdEMAMix's `alpha` rises from 0; null: it is constant. */
  tAlpha: number | null;
  /** Steps over which AdEMAMix's `betas[2]` rises from `betas[0]`; null: it is constant. */
  tBeta3: number | null;
  /** Bits of the states, 8 or 32. */
  optimBits: 8 | 32;
  /** Parameters with fewer elements always have 32-bit states. */
  min8bitSize: number;
  /**
   * Above 0: where ‖direction‖ > maxUnorm × ‖p‖, the step is scaled down by their quotient, the trust ratio. Adam's
   * direction is of corrected moments.
   */
  maxUnorm: number;
  /** Leave elements whose gradient is exactly zero as they are, states too: for sparse gradients. */
  skipZeros: boolean;
}

const common: Config = {
  lr: Number.NaN,
  betas: [0, 0],
  eps: 0,
  weightDecay: 0,
  alpha: 0,
  tAlpha: null,
  tBeta3: null,
  optimBits: 32,
  min8bitSize: 4096,
  maxUnorm: 0,
  skipZeros: false,
};

/** A family of optimizers: one rule with its defaults, and the options that its classes take. */
export interface Family {
  readonly kind: keyof typeof optimizers;
  readonly defaults: Partial<Config>;
  /** Settings that are options, beside those of every optimizer. */
  readonly settings: readonly (keyof Config)[];
  /** The option that is another word for `betas[0]`. */
  readonly beta1?: string;
  /** bitsandbytes' options that have one legal value, for which nothing needs to be done. */
  readonly only?: Readonly<Record<string, unknown>>;
  /** Whether there are Paged classes. */
  readonly paged?: true;
}

/** The settings among options: an object, of which nothing else is taken. */
function entriesOf(what: string, options: unknown, argument: string): [name: string, value: unknown][] {
  if (!isOptions(options))
    throw new BnbError(`${what}: ${argument} is ${show(options)}, expected an object of settings.`);
  return Object.entries(options);
}

const everyones: readonly (keyof Config)[] = ["lr", "weightDecay", "min8bitSize", "skipZeros"];

/** The settings of a family's optimizer before any option. */
export function defaultsOf(family: Family): Config {
  return { ...common, ...family.defaults };
}

/**
 * A family's settings with options applied.
 *
 * @param what the optimizer's name, for messages
 * @throws BnbError for an option that the family does not have, and `unsupported` for a value that it has not
 */
export function applyOptions(what: string, family: Family, config: Config, options: object): Config {
  const { settings, beta1, only = {} } = family;
  const applied: Record<string, unknown> = { ...config };
  for (const [name, value] of entriesOf(what, options, "options")) {
    if (value === undefined) continue;
    if (Object.hasOwn(only, name)) {
      if (value !== only[name])
        throw new BnbError(`${what}: ${name} is ${show(value)}, but only ${show(only[name])} is there.`, "unsupported");
    } else if (name === beta1) {
      if (!isBeta(value))
        throw new BnbError(`${what}: ${name} is ${show(value)}, expected a number of at least 0 and less than 1.`);
      applied.betas = [value, 0];
    } else if ([...settings, ...everyones].includes(name as keyof Config)) applied[name] = value;
    else if (name !== "isPaged" || !family.paged) {
      const known = [...settings, ...everyones, beta1, ...Object.keys(only), ...(family.paged ? ["isPaged"] : [])];
      throw new BnbError(`${what}: options has no ${name}, expected one of ${known.filter(Boolean).join(", ")}.`);
    }
  }
  checkConfig(what, applied as unknown as Config);
  return applied as unknown as Config;
}

/** Checks settings that a caller gave, all or some of them. @throws BnbError naming the one at fault */
export function checkConfig(what: string, config: Partial<Config>): void {
  for (const [name, value] of entriesOf(what, config, "config")) {
    const rule = Object.hasOwn(rules, name) ? rules[name as keyof Config] : undefined;
    if (!rule) throw new BnbError(`${what}: config has no ${name}, expected one of ${Object.keys(rules).join(", ")}.`);
    if (!rule.holds(value)) throw new BnbError(`${what}: ${name} is ${show(value)}, expected ${rule.expected}.`);
  }
}

const notNegative = { holds: (v: unknown) => isFloat(v) && v >= 0, expected: "a finite number of at least 0" };
const isBeta = (v: unknown) => isFloat(v) && v >= 0 && v < 1;
const steps = {
  holds: (v: unknown) => v === null || (isFloat(v) && v > 0),
  expected: "a positive count of steps, or null",
};

const rules: Record<keyof Config, { holds(value: unknown): boolean; expected: string }> = {
  lr: notNegative,
  betas: {
    holds: (v) => Array.isArray(v) && (v.length === 2 || v.length === 3) && v.every(isBeta),
    expected: "two numbers (three for AdEMAMix), each at least 0 and less than 1",
  },
  eps: notNegative,
  weightDecay: notNegative,
  alpha: { holds: isFloat, expected: "a finite number" },
  tAlpha: steps,
  tBeta3: steps,
  optimBits: { holds: (v) => v === 8 || v === 32, expected: "8 or 32" },
  min8bitSize: notNegative,
  maxUnorm: notNegative,
  skipZeros: { holds: (v) => typeof v === "boolean", expected: "true or false" },
};

/** Options of every optimizer, for all its parameters or for one group; {@link Config} describes each. */
export type CommonOptions = Partial<Pick<Config, "lr" | "weightDecay" | "min8bitSize" | "skipZeros">>;

/** The option of the classes without bits in their name: 8 or 32, the default. */
export type BitsOption = Partial<Pick<Config, "optimBits">>;

/**
 * The option of the classes that bitsandbytes can page. It is accepted, as the Paged classes are, and changes nothing:
 * paging moves states out of a GPU's own memory when that is full. On Metal and the CPU, states lie in memory that the
 * operating system pages anyway; on CUDA they stay in the GPU's memory.
 */
export interface PagedOption {
  isPaged?: boolean;
}

/** A family whose classes have no bits in their name: they are an option. */
export const ofAnyBits = (family: Family): Family => ({ ...family, settings: [...family.settings, "optimBits"] });

/** A family with states of these bits. */
export const ofBits = (family: Family, optimBits: 8 | 32): Family => ({
  ...family,
  defaults: { ...family.defaults, optimBits },
});
