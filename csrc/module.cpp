// pyar._C: facts about this build and the random numbers, for `pyar info` and the tests. No torch header is included
// here; the operations are in library.cpp and reach Python through torch.ops.pyar.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "common/activation.h"
#include "common/draw.h"
#include "common/philox.h"
#include "cpu/dispatch.h"
#include "cpu/lstm/cache.h"
#include "cpu/peak_kernel.h"
#include "cpu/team.h"

#ifndef PYAR_CUDA_ARCHS
#define PYAR_CUDA_ARCHS ""
#endif

namespace py = pybind11;

namespace {

using pyar::cpu::Level;

py::dict build_facts() {
  py::dict facts;
  facts["compiler"] = __VERSION__;
  std::vector<std::string> built = {"baseline"}, supported = {"baseline"};
#if defined(__x86_64__)
  for (const Level level : {Level::avx2, Level::avx512}) {
    built.emplace_back(pyar::cpu::level_name(level));
    if (pyar::cpu::level_supported(level)) supported.emplace_back(pyar::cpu::level_name(level));
  }
#endif
  facts["cpu_levels_built"] = built;
  facts["cpu_levels_supported"] = supported;
  facts["cpu_level"] = pyar::cpu::level_name(pyar::cpu::level());
  facts["cuda_archs"] = PYAR_CUDA_ARCHS;
  return facts;
}

py::dict lstm_cache_facts() {
  const pyar::cpu::LstmCacheFacts cache = pyar::cpu::lstm_cache_facts();
  py::dict facts;
  facts["models"] = cache.models;
  facts["bytes"] = cache.bytes;
  facts["hits"] = cache.hits;
  facts["misses"] = cache.misses;
  return facts;
}

py::dict team_facts() {
  py::dict facts;
  facts["threads"] = pyar::cpu::num_threads();
  facts["pieces_by_workers"] = pyar::cpu::pieces_by_workers();
  return facts;
}

void share(int64_t threads, int64_t pieces, const py::function& work) {
  const py::gil_scoped_release release;
  pyar::cpu::Crew(threads).share(pieces, [&](int64_t piece, int64_t seat) {
    const py::gil_scoped_acquire acquire;
    work(piece, seat);
  });
}

std::array<uint32_t, 4> philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  const pyar::PhiloxBlock block =
      pyar::philox4x32_10({{counter[0], counter[1], counter[2], counter[3]}}, key[0], key[1]);
  return {block.word[0], block.word[1], block.word[2], block.word[3]};
}

// Runs work(thread) on that many threads until the time is up and returns the sum of what it returned, per second.
template <typename Work>
double rate(int threads, double seconds, const Work& work) {
  if (threads < 1) throw std::invalid_argument("threads must be at least 1, got " + std::to_string(threads));
  if (!(seconds > 0)) throw std::invalid_argument("seconds must be positive, got " + std::to_string(seconds));
  std::vector<double> rates(threads);
  std::vector<std::thread> pool;
  for (int thread = 0; thread < threads; ++thread) {
    pool.emplace_back([&, thread] {
      work(thread);  // warm-up: clock, page faults, caches
      const auto start = std::chrono::steady_clock::now();
      double amount = 0, elapsed = 0;
      while (elapsed < seconds) {
        amount += work(thread);
        elapsed = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      }
      rates[thread] = amount / elapsed;
    });
  }
  for (std::thread& thread : pool) thread.join();
  double total = 0;
  for (const double value : rates) total += value;
  return total;
}

double multiply_add_peak(int threads, double seconds) {
  return rate(threads, seconds, [](int) { return PYAR_FOR_THIS_CPU(multiply_add_loop)(100000); });
}

double load_bandwidth(int threads, double seconds, int64_t bytes) {
  // Every thread streams its own part again and again, as kernels split the weights that each step needs.
  const int64_t part = bytes / 256 / std::max(threads, 1) * 64;
  if (part < 64) throw std::invalid_argument("bytes must be at least 256 a thread, got " + std::to_string(bytes));
  const std::vector<float> buffer(part * threads, 1.0f);
  const int64_t passes = 1 + (int64_t{1} << 20) / part;
  return rate(threads, seconds, [&](int thread) {
    for (int64_t pass = 0; pass < passes; ++pass) {
      volatile float sink = PYAR_FOR_THIS_CPU(load_loop)(buffer.data() + thread * part, part);
      (void)sink;
    }
    return 4.0 * part * passes;
  });
}

py::tuple draw(std::vector<float> weights, float u) {
  float total = 0.0f;
  const int state = pyar::draw_state(weights.data(), static_cast<int>(weights.size()), u, &total);
  return py::make_tuple(state, total);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build facts and random numbers of pyar's native kernels.";
  m.def("build_facts", &build_facts, "What this extension was built for and what is in use.");
  m.def("lstm_cache_facts", &lstm_cache_facts,
        "The packed PixelLSTMs that are kept between calls: how many, their bytes, calls that found theirs, calls that "
        "did not.");
  m.def(
      "team_facts", &team_facts,
      "How many threads a call may use now, and how many pieces of work pyar's workers have done for the threads that "
      "called.");
  m.def("share", &share, py::arg("threads"), py::arg("pieces"), py::arg("work"),
        "Calls work(piece, seat) for every piece, as an operation with so many threads shares its work. For tests.");
  m.def("hold_workers", &pyar::cpu::hold_workers, py::arg("hold"),
        "Keeps workers from claiming anything, as if the system did not schedule them, until told not to. For tests.");
  m.def("pretend_processors", &pyar::cpu::pretend_processors, py::arg("processors"),
        "Makes calls believe that this process may use so many processors; 0: ask the system. For tests.");
  m.def("philox4x32_10", &philox, py::arg("counter"), py::arg("key"),
        "Philox4x32-10: four words from counter and key.");
  m.def("philox_uniform", &pyar::philox_uniform, py::arg("seed"), py::arg("sample"), py::arg("dimension"),
        "The uniform in (0, 1) of (seed, sample, dimension).");
  m.def("draw_state", &draw, py::arg("weights"), py::arg("u"),
        "The state of the uniform u, or -1 if the weights are no distribution, and the weights' sum.");
  m.def("draw_binary", &pyar::draw_binary, py::arg("weight0"), py::arg("weight1"), py::arg("u"),
        "The same for two weights: the state alone.");
  m.def("sigmoid", &pyar::sigmoid, py::arg("x"), "The logistic function of one float32, as the GPU kernels write it.");
  m.def("log_sigmoid", &pyar::log_sigmoid, py::arg("x"), "Its logarithm.");
  m.def("multiply_add_peak", &multiply_add_peak, py::arg("threads"), py::arg("seconds") = 0.2,
        py::call_guard<py::gil_scoped_release>(),
        "Single-precision operations per second of register-only multiply-adds at the level in use.");
  m.def("load_bandwidth", &load_bandwidth, py::arg("threads"), py::arg("seconds") = 0.2,
        py::arg("bytes") = int64_t{256} << 20, py::call_guard<py::gil_scoped_release>(),
        "Bytes per second, all threads together, that they load from a buffer of that size, each from its own part.");
}
