// The random numbers of pyar: Philox4x32-10 (Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2,
// 3", SC 2011), a counter-based generator, so that the uniform of (seed, sample, dimension) needs no state and no
// order.
#pragma once

#include <cstdint>

#include "common/portable.h"

namespace pyar {

struct PhiloxBlock {
  uint32_t word[4];
};

// Ten rounds: counter [4] and key [2] → four 32-bit words.
PYAR_HOST_DEVICE PhiloxBlock philox4x32_10(const PhiloxBlock& counter, uint32_t key0, uint32_t key1) {
  constexpr uint32_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u;
  constexpr uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;
  PhiloxBlock c = counter;
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = static_cast<uint64_t>(kMultiplier0) * c.word[0];
    const uint64_t product1 = static_cast<uint64_t>(kMultiplier1) * c.word[2];
    const PhiloxBlock next = {
        {static_cast<uint32_t>(product1 >> 32) ^ c.word[1] ^ key0, static_cast<uint32_t>(product1),
         static_cast<uint32_t>(product0 >> 32) ^ c.word[3] ^ key1, static_cast<uint32_t>(product0)}};
    c = next;
    key0 += kWeyl0;
    key1 += kWeyl1;
  }
  return c;
}

// The four words that serve dimensions 4·(dimension/4) … 4·(dimension/4)+3 of one sample.
PYAR_HOST_DEVICE PhiloxBlock philox_block(uint64_t seed, uint64_t sample, uint32_t dimension) {
  const PhiloxBlock counter = {
      {dimension >> 2, 0u, static_cast<uint32_t>(sample), static_cast<uint32_t>(sample >> 32)}};
  return philox4x32_10(counter, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
}

// u = ((r >> 9) + 1/2)·2⁻²³, strictly inside (0, 1). Both steps are exact in float32.
PYAR_HOST_DEVICE float uniform_from_word(uint32_t word) {
  return (static_cast<float>(word >> 9) + 0.5f) * (1.0f / 8388608.0f);
}

// The uniform of (seed, sample, dimension): pyar's promise that a sample depends on nothing else.
PYAR_HOST_DEVICE float philox_uniform(uint64_t seed, uint64_t sample, uint32_t dimension) {
  return uniform_from_word(philox_block(seed, sample, dimension).word[dimension & 3]);
}

}  // namespace pyar
