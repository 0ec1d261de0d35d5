// The encoding of Protocol Buffers, as far as a writer needs it: numbers, bytes, texts and messages in messages.

/** A message that is being written, field by field; https://protobuf.dev/programming-guides/encoding. */
export class Message {
  readonly #parts: Uint8Array[] = [];

  /** An integer, an enum's value or a truth. */
  number(field: number, value: number | boolean): this {
    this.#parts.push(varint(field * 8), varint(Number(value)));
    return this;
  }

  bytes(field: number, value: Uint8Array): this {
    this.#parts.push(varint(field * 8 + 2), varint(value.length), value);
    return this;
  }

  text(field: number, value: string): this {
    return this.bytes(field, Buffer.from(value));
  }

  message(field: number, value: Message): this {
    return this.bytes(field, value.finish());
  }

  /** Integers or truths, packed. */
  numbers(field: number, values: readonly (number | boolean)[]): this {
    return this.bytes(field, Buffer.concat(values.map((value) => varint(Number(value)))));
  }

  /** An entry of a map from texts to messages. */
  entry(field: number, key: string, value: Message): this {
    return this.message(field, new Message().text(1, key).message(2, value));
  }

  finish(): Uint8Array {
    return Buffer.concat(this.#parts);
  }
}

/** Seven bits a byte, the lowest first; a negative number as one of 64 bits. */
function varint(value: number): Uint8Array {
  let rest = BigInt.asUintN(64, BigInt(value));
  const bytes: number[] = [];
  for (; rest >= 128n; rest >>= 7n) bytes.push(Number(rest & 127n) | 128);
  bytes.push(Number(rest));
  return Uint8Array.from(bytes);
}
