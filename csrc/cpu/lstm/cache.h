// Facts about the packed PixelLSTMs that are kept between calls (cache.cpp), for pyar._C.
#pragma once

#include <stdint.h>

namespace pyar::cpu {

struct LstmCacheFacts {
  int64_t models;  // kept now
  int64_t bytes;   // that they take
  int64_t hits;    // calls that found their parameters packed
  int64_t misses;  // calls that packed them
};

LstmCacheFacts lstm_cache_facts();

}  // namespace pyar::cpu
