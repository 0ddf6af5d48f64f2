// The CPU twin of torch.cuda.max_memory_allocated: counts every byte that PyTorch's CPU allocator hands out.
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>

#include <atomic>
#include <cstdint>

namespace {

// The size is kept in front of the data; a whole cache line of it, so that the data stays aligned.
constexpr size_t kHeader = 64;
std::atomic<int64_t> current{0}, peak{0};

void release(void* data) {
  if (!data) return;
  char* block = static_cast<char*>(data) - kHeader;
  current -= *reinterpret_cast<int64_t*>(block);
  c10::free_cpu(block);
}

struct Counting final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    const auto cpu = c10::Device(c10::DeviceType::CPU);
    if (bytes == 0) return {nullptr, nullptr, &release, cpu};
    char* block = static_cast<char*>(c10::alloc_cpu(bytes + kHeader));
    *reinterpret_cast<int64_t*>(block) = static_cast<int64_t>(bytes);
    const int64_t now = current += static_cast<int64_t>(bytes);
    int64_t top = peak.load();
    while (now > top && !peak.compare_exchange_weak(top, now)) {
    }
    // data == context, which raw_allocate and raw_deallocate ask for.
    return {block + kHeader, block + kHeader, &release, cpu};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};

Counting counting;

}  // namespace

extern "C" {
void plumbline_install() { c10::SetCPUAllocator(&counting, /*priority=*/255); }
int64_t plumbline_current() { return current; }
int64_t plumbline_peak() { return peak; }
void plumbline_reset() { peak.store(current.load()); }
}
