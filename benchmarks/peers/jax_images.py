"""JAX, for images of two states: the loss of the Diagonal BiLSTM and the Row LSTM, one lax.scan a layer, gates of both
directions in one product; and samplers that compute every feature once, as pyar's do. Each is one jitted program.

Parameters are those of pyar's models, by their names; images are [B, rows, columns] of 0 and 1.
"""

from __future__ import annotations

from functools import partial

import jax
from jax import lax
from jax import numpy as jnp

Parameters = dict[str, jax.Array]


def layers_of(p: Parameters) -> list[Parameters]:
    """The parameters layer by layer."""
    count = 1 + max(int(name.split(".")[1]) for name in p if name.startswith("layers."))
    prefixes = [f"layers.{number}." for number in range(count)]
    return [{k.removeprefix(prefix): v for k, v in p.items() if k.startswith(prefix)} for prefix in prefixes]


def head(p: Parameters, x: jax.Array) -> jax.Array:
    """The logits of features [..., F]."""
    a = jax.nn.relu(x) @ p["head.hidden.weight"].T + p["head.hidden.bias"]
    return (jax.nn.relu(a) @ p["head.outputs.0.weight"].T + p["head.outputs.0.bias"])[..., 0]


def cell(gates: jax.Array, c: jax.Array) -> tuple[jax.Array, jax.Array]:
    i, f, g, o = jnp.split(gates, 4, -1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


# ---- loss and gradients ----


def first_map(p: Parameters, image: jax.Array) -> jax.Array:
    def convolve(weight: jax.Array, rows: tuple[int, int], columns: tuple[int, int]) -> jax.Array:
        numbers = ("NHWC", "OIHW", "NHWC")
        return lax.conv_general_dilated(image, weight, (1, 1), (rows, columns), dimension_numbers=numbers)

    return convolve(p["above.weight"], (3, -1), (3, 3)) + convolve(p["left.weight"], (0, 0), (3, -1)) + p["above.bias"]


def skew(x: jax.Array) -> jax.Array:
    """Row i moved i places to the right: [N, H, W, …] → [W + H − 1, N, H, …]."""
    N, H, W, *rest = x.shape
    x = jnp.pad(x, ((0, 0), (0, 0), (0, H), *((0, 0) for _ in rest))).reshape(N, H * (W + H), *rest)
    return jnp.moveaxis(x[:, : H * (W + H - 1)].reshape(N, H, W + H - 1, *rest), 2, 0)


def unskew(x: jax.Array) -> jax.Array:
    """The inverse of skew."""
    steps, N, H, *rest = x.shape
    x = jnp.moveaxis(x, 0, 2).reshape(N, H * steps, *rest)
    x = jnp.pad(x, ((0, 0), (0, H), *((0, 0) for _ in rest))).reshape(N, H, steps + 1, *rest)
    return x[:, :, : steps + 1 - H]


def down(x: jax.Array) -> jax.Array:
    """[…, H, h] moved by one row."""
    return jnp.pad(x[..., :-1, :], [(0, 0)] * (x.ndim - 2) + [(1, 0), (0, 0)])


def diagonal_layer(q: Parameters, x: jax.Array, image: jax.Array, unroll: int) -> jax.Array:
    B, H, W, _ = x.shape
    from_left = x @ q["W_left"].T + q["b_left"]
    from_right = (jnp.concatenate((x, image), -1) @ q["W_right"].T + q["b_right"])[:, :, ::-1]
    gates = skew(jnp.concatenate((from_left, from_right))).reshape(W + H - 1, 2, B, H, -1)
    # [2, 2h, 4h], of the pixel beside and the pixel above.
    U = jnp.stack([q[f"U_{side}"].transpose(0, 2, 1).reshape(-1, from_left.shape[-1]) for side in ("left", "right")])

    def step(carry, inputs):
        h, c = carry
        beside = jnp.concatenate((h, down(h)), -1)
        h, c = cell(inputs + jnp.einsum("dbri,dio->dbro", beside, U), c)
        return (h, c), h

    zeros = jnp.zeros((2, B, H, U.shape[1] // 2))
    h = unskew(lax.scan(step, (zeros, zeros), gates, unroll=unroll)[1].reshape(W + H - 1, 2 * B, H, -1))
    right = jnp.pad(h[B:, :-1, ::-1], ((0, 0), (1, 0), (0, 0), (0, 0)))
    return x + (h[:B] + right) @ q["up"].T + q["up_bias"]


def row_layer(q: Parameters, x: jax.Array, image: jax.Array, unroll: int) -> jax.Array:
    B, _, W, _ = x.shape
    left = jnp.pad(x[:, :, :-1], ((0, 0), (0, 0), (1, 0), (0, 0)))
    gates = jnp.concatenate((left, x), -1) @ q["W"].transpose(0, 2, 1).reshape(-1, q["b"].shape[0]) + q["b"]
    U = q["U"].transpose(0, 2, 1).reshape(-1, q["b"].shape[0])

    def step(carry, inputs):
        h, c = carry
        padded = jnp.pad(h, ((0, 0), (1, 1), (0, 0)))
        h, c = cell(inputs + jnp.concatenate((padded[:, :-2], h, padded[:, 2:]), -1) @ U, c)
        return (h, c), h

    zeros = jnp.zeros((B, W, q["up"].shape[1]))
    h = jnp.moveaxis(lax.scan(step, (zeros, zeros), jnp.moveaxis(gates, 1, 0), unroll=unroll)[1], 0, 1)
    return x + h @ q["up"].T + q["up_bias"]


def mean_nll(p: Parameters, states: jax.Array, *, unroll: int) -> jax.Array:
    """states float32 [B, rows, columns] → the mean negative log-likelihood in nats."""
    image = 2 * states[..., None] - 1
    x = first_map(p, image)
    for q in layers_of(p):
        x = (diagonal_layer if "W_left" in q else row_layer)(q, x, image, unroll)
    logits = head(p, x)
    return (jax.nn.softplus(logits) - states * logits).sum((1, 2)).mean()


def loss_and_gradients(unroll: int):
    """(parameters, states) → (loss, gradients), jitted."""
    return jax.jit(jax.value_and_grad(partial(mean_nll, unroll=unroll)))


# ---- sampling ----


def draw(logits: jax.Array, u: jax.Array) -> jax.Array:
    return (u >= jax.nn.sigmoid(-logits)).astype(jnp.float32)


@jax.jit
def sample_pixel_cnn(p: Parameters, uniforms: jax.Array) -> jax.Array:
    """Of the gated form; uniforms [rows, columns, B] → states [rows, columns, B]."""
    _, columns, B = uniforms.shape
    layers, k = layers_of(p), 3
    F = layers[0]["skip.weight"].shape[0]
    first = layers[0]["vertical.weight"].shape[3] // 2

    def gate(x):
        a, b = jnp.split(x, 2, -1)
        return jnp.tanh(a) * jax.nn.sigmoid(b)

    def windows(x, width):
        """[B, columns + width − 1, C] → [B, columns, width·C]."""
        return jnp.concatenate([x[:, j : j + columns] for j in range(width)], -1)

    def matrix(weight):
        """[O, I, rows, columns] → [rows·columns·I, O]."""
        return weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0])

    def row(carry, u):
        image, above = carry  # [B, first, columns + 2·first], and of every layer but the last v [B, columns + 2, F]
        waiting, following = [], []
        inputs = jnp.concatenate([windows(image[:, i, :, None], 2 * first + 1) for i in range(first)], -1)
        for number, q in enumerate(layers):
            a = inputs @ matrix(q["vertical.weight"]) + q["vertical.bias"]
            waiting.append(a @ q["cross.weight"][:, :, 0, 0].T + q["horizontal.bias"])
            if number + 1 < len(layers):
                v = jnp.pad(gate(a), ((0, 0), (k // 2, k // 2), (0, 0)))
                inputs = jnp.concatenate((windows(above[number], k), windows(v, k)), -1)
                following.append(v)

        def pixel(carry, inputs):
            seen, before = carry  # the last numbers [B, first], and of every layer but the first h to the left
            u, waiting = inputs
            h, features, after = None, 0.0, []
            for number, q in enumerate(layers):
                left = seen if number == 0 else jnp.concatenate((before[number - 1], h), -1)
                g = gate(waiting[number] + left @ matrix(q["horizontal.weight"]))
                features += g @ q["skip.weight"][:, :, 0, 0].T + q["skip.bias"]
                if number + 1 < len(layers):
                    through = g @ q["residual.weight"][:, :, 0, 0].T + q["residual.bias"]
                    h = through if number == 0 else h + through
                    after.append(h)
            state = draw(head(p, features), u)
            return (jnp.concatenate((seen[:, 1:], 2 * state[:, None] - 1), 1), after), state

        start = (jnp.zeros((B, first)), [jnp.zeros((B, F))] * (len(layers) - 1))
        _, states = lax.scan(pixel, start, (u, jnp.moveaxis(jnp.stack(waiting), 2, 0)))
        line = jnp.pad(2 * states.T - 1, ((0, 0), (first, first)))
        return (jnp.concatenate((image[:, 1:], line[:, None]), 1), following), states

    zeros = jnp.zeros((B, first, columns + 2 * first))
    return lax.scan(row, (zeros, [jnp.zeros((B, columns + k - 1, F))] * (len(layers) - 1)), uniforms)[1]


@jax.jit
def sample_diagonal_bilstm(p: Parameters, uniforms: jax.Array) -> jax.Array:
    """uniforms [rows, columns, B] → states [rows, columns, B]."""
    _, columns, B = uniforms.shape
    q = {name: jnp.stack([layer[name] for layer in layers_of(p)]) for name in layers_of(p)[0]}
    L, _, h = q["up"].shape
    above, left = (
        p[name].transpose(2, 3, 1, 0).reshape(-1, p[name].shape[0]) for name in ("above.weight", "left.weight")
    )

    def row(carry, u):
        image, h_above, from_right = carry  # [B, 3, columns + 6], [columns, L, B, h] both
        first = jnp.concatenate([image[:, i, j : j + columns, None] for i in range(3) for j in range(7)], -1)
        first = jnp.moveaxis(first @ above + p["above.bias"], 1, 0)
        waiting = jnp.einsum("clbi,loi->clbo", h_above, q["U_left"][:, 1]) + q["b_left"][:, None]

        def pixel(carry, inputs):
            seen, before, c_before = carry
            u, x, waiting, right = inputs
            x = x + seen @ left
            xs, hs, cs = [], [], []
            for layer in range(L):
                into = waiting[layer] + jnp.concatenate((x, before[layer]), -1) @ from_x_and_left[layer]
                after, c = cell(into, c_before[layer])
                xs.append(x)
                hs.append(after)
                cs.append(c)
                x = x + (after + right[layer]) @ q["up"][layer].T + q["up_bias"][layer]
            state = draw(head(p, x), u)
            after = (jnp.concatenate((seen[:, 1:], 2 * state[:, None] - 1), 1), jnp.stack(hs), jnp.stack(cs))
            return after, (state, jnp.stack(xs), after[1])

        zeros = jnp.zeros((L, B, h))
        start = (jnp.zeros((B, 3)), zeros, zeros)
        _, (states, xs, h_above) = lax.scan(pixel, start, (u, first, waiting, from_right))
        # From the right, all layers at once.
        own = jnp.broadcast_to((2 * states - 1)[:, None, :, None], (columns, L, B, 1))
        gates = jnp.einsum("clbi,loi->clbo", jnp.concatenate((xs, own, from_right), -1), into_right)
        gates += q["b_right"][:, None]

        def back(carry, gates):
            h, c = carry
            h, c = cell(gates + jnp.einsum("lbi,loi->lbo", h, q["U_right"][:, 0]), c)
            return (h, c), h

        _, from_right = lax.scan(back, (zeros, zeros), gates, reverse=True)
        line = jnp.pad(2 * states.T - 1, ((0, 0), (3, 3)))
        return (jnp.concatenate((image[:, 1:], line[:, None]), 1), h_above, from_right), states

    from_x_and_left = jnp.concatenate((q["W_left"], q["U_left"][:, 0]), -1).transpose(0, 2, 1)
    into_right = jnp.concatenate((q["W_right"], q["U_right"][:, 1]), -1)
    zeros = jnp.zeros((columns, L, B, h))
    return lax.scan(row, (jnp.zeros((B, 3, columns + 6)), zeros, zeros), uniforms)[1]
