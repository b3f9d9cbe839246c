// The kernels on a CPU: what g++ makes of the very source that the GPU runs. One block after the other; a block's threads
// take turns on one processor, each until it waits for the others, so that a wait left out shows, and each time alike.
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <ucontext.h>

#define HOST
struct Place {
    unsigned x;
};
static Place threadIdx = {0}, blockDim = {1}, blockIdx = {0}, gridDim = {1};
static unsigned long long bytes_read;
static unsigned char *times_read; // of each byte from `counted_from` on, where somebody asked for it
static const unsigned char *counted_from;
static unsigned long long counted_bytes;
static void count_read(const unsigned char *at, unsigned bytes) {
    bytes_read += bytes;
    for (; times_read && bytes; ++at, --bytes)
        if (at >= counted_from && at < counted_from + counted_bytes)
            ++times_read[at - counted_from];
}
#define COUNT_READ(at, bytes) count_read(at, bytes)

static bool held; // in a launch, whatever the GPU takes for granted
#define RETURN_UNLESS(truth)                                                                                             \
    do                                                                                                                   \
        if (!(truth)) {                                                                                                  \
            held = false;                                                                                                \
            return;                                                                                                      \
        }                                                                                                                \
    while (false)

static void wait_for_the_block();
static unsigned float_bits(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
#include "preprocess.cu"
#include "reduce.cu"

struct Thread {
    ucontext_t context;
    bool done;
    char stack[1 << 16];
};

static unsigned threads = 1, backwards;
static std::unique_ptr<Thread[]> block;
static ucontext_t scheduler;
static std::function<void()> running;
static std::mutex one_launch; // the words above and every SHARED are one block's

static void wait_for_the_block() {
    if (threads > 1)
        swapcontext(&block[threadIdx.x].context, &scheduler);
}

static void begin() {
    running();
    block[threadIdx.x].done = true; // its context ends, and the scheduler goes on
}

static void run_block() {
    for (unsigned one = 0; one < threads; ++one) {
        Thread &thread = block[one];
        getcontext(&thread.context);
        thread.context.uc_stack.ss_sp = thread.stack;
        thread.context.uc_stack.ss_size = sizeof thread.stack;
        thread.context.uc_link = &scheduler;
        thread.done = false;
        makecontext(&thread.context, begin, 0);
    }
    for (unsigned left = threads; left;)
        for (unsigned turn = 0; turn < threads; ++turn) {
            threadIdx.x = backwards ? threads - 1 - turn : turn;
            if (block[threadIdx.x].done)
                continue;
            swapcontext(&scheduler, &block[threadIdx.x].context);
            left -= block[threadIdx.x].done;
        }
    threadIdx.x = 0;
}

static void launch(unsigned blocks, std::function<void()> body) {
    std::lock_guard<std::mutex> alone(one_launch);
    held = true;
    running = body;
    gridDim.x = blocks;
    blockDim.x = threads;
    for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x)
        if (threads > 1)
            run_block();
        else
            running();
}

// Of each block from now on; `last_first`: in which order they take turns.
extern "C" void set_threads(unsigned count, unsigned last_first) {
    std::lock_guard<std::mutex> alone(one_launch);
    threads = count;
    backwards = last_first;
    block.reset(count > 1 ? new Thread[count] : nullptr);
}

#define RUN(name, stored)                                                                                                \
    if (!std::strcmp(kernel, #name)) {                                                                                   \
        launch(blocks, [=] { gather_##name(frame, *plan, (stored *)halved, sums); });                                    \
        return held ? 0 : 2;                                                                                             \
    }

extern "C" int run_gather(const char *kernel, unsigned blocks, const Frame *frame, const Plan *plan, void *halved, Sums *sums) {
    RUN(mono8, u8)
    RUN(mono16, u16)
    RUN(rgb8, u8)
    RUN(bgr8, u8)
    RUN(yuyv, u8)
    RUN(uyvy, u8)
    RUN(nv12, u8)
    RUN(bayer8, u8)
    RUN(bayer16, u16)
    RUN(quads8, u8)
    RUN(quads16, u16)
    return 1;
}

extern "C" void run_sample(int words, unsigned blocks, const Plan *plan, int channels, const void *halved, const int *rows,
                           const float *row_shares, const int *columns, const float *column_shares, float *tensor, Sums *sums) {
    launch(blocks, [=] {
        if (words)
            sample_u16(*plan, channels, (const u16 *)halved, rows, row_shares, columns, column_shares, tensor, sums);
        else
            sample_u8(*plan, channels, (const u8 *)halved, rows, row_shares, columns, column_shares, tensor, sums);
    });
}

extern "C" void run_reduce_map(unsigned blocks, const float *map, int count, float low, float high, void *shares,
                               Extremes *extremes) {
    launch(blocks, [=] { reduce_map(map, count, low, high, (u8 *)shares, extremes); });
}

// How often each of these bytes is read, from now on; null: nobody asks.
extern "C" void count_each_byte(unsigned char *times, const unsigned char *from, unsigned long long bytes) {
    std::lock_guard<std::mutex> alone(one_launch);
    times_read = times;
    counted_from = from;
    counted_bytes = bytes;
}

extern "C" unsigned long long take_bytes_read() {
    unsigned long long told = bytes_read;
    bytes_read = 0;
    return told;
}

extern "C" unsigned long long sizes(int which) {
    return which == 0 ? sizeof(Frame) : which == 1 ? sizeof(Plan) : which == 2 ? sizeof(Sums) : sizeof(Extremes);
}
