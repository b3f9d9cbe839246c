// Preprocess on the GPU, two kernels in a row; the definition they are held to is appliance/model/preprocess.py.
//
// gather: reads the camera's buffer once, tile by tile in its own format, each row at its pitch; leaves the ROI, halved
//         as often as the definition says, and the ROI's histogram and sum.
// sample: scales what gather left by bilinear interpolation, normalises it to planes of float, and sums the Laplacian.
//
// The buffer is not cached for the GPU on a Jetson: a byte read twice is fetched twice. So a block brings a tile's rows
// into shared memory by 16 bytes at once, and everything else reads them there.
//
// Every loop strides over its block and its grid, so any launch shape is right; with the words below defined otherwise
// the same source runs on a CPU (host.cpp), where the tests hold it to the reference.

#ifdef HOST
#define GLOBAL static void
#define LAUNCHED_BY_256(at_once)
#define DEVICE inline
#define SHARED alignas(16) static
#define SYNC() wait_for_the_block()
#define ADD32(where, what) (*(where) += (what))
#define ADD64(where, what) (*(where) += (what))
#define MAX32(where, what) (*(where) = *(where) < (what) ? (what) : *(where))
#define WARP_SUM(value) (value)
#define SPEAKS_FOR_WARP true
#else
#define GLOBAL extern "C" __global__ void
#define LAUNCHED_BY_256(at_once) __launch_bounds__(256, at_once)
#define DEVICE __device__ __forceinline__
#define SHARED __align__(16) __shared__
#define SYNC() __syncthreads()
#define ADD32(where, what) atomicAdd(where, what)
#define ADD64(where, what) atomicAdd(where, what)
#define MAX32(where, what) atomicMax(where, what)
#define WARP_SUM(value) warp_sum(value)
#define SPEAKS_FOR_WARP ((threadIdx.x & 31) == 0)
#define float_bits(value) __float_as_uint(value)
#define COUNT_READ(at, bytes)
#define RETURN_UNLESS(truth)
#endif

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#ifndef HOST
DEVICE u64 warp_sum(u64 value) {
    for (int apart = 16; apart; apart /= 2)
        value += __shfl_down_sync(0xffffffffu, value, apart);
    return value;
}
#endif

// Shared memory of gather; appliance/model/kernel_plan.py cuts the tiles so that they fit.
enum {
    RAW_BYTES = 16384,   // the tile as the camera gave it
    FIRST_BYTES = 8192,  // halved once, and thrice, and five times
    SECOND_BYTES = 2048, // halved twice, and so on
    COPIES = 8,          // of the histogram: lanes that meet the same grey add to different ones
};

// Where the next frame lies. It stands in mapped memory and is filled before each launch: a captured graph keeps its
// arguments for ever, and the driver's buffers change from frame to frame.
struct Frame {
    const u8 *data;
    i64 pitch;
};

// What stays the same for one camera and one recipe.
struct Plan {
    int frame_width, frame_height;
    int x, y, width, height;      // the ROI, in pixels as delivered
    int image_width, image_height; // the ROI, or its Bayer quads
    int halvings;                 // after that
    int out_width, out_height;    // what they leave: image >> halvings
    int channels;                 // of the network: 1 or 3
    int colours[4];               // of a Bayer quad whose corner is the ROI's: 0 red, 1 green, 2 blue
    int balanced;                 // whether the gains are other than 1
    int gains[3];                 // in 1/65536
    int target_width, target_height; // the network's input
    int left, top, content_width, content_height; // where the picture lies in it
    float pad;                    // a letterbox's grey
    float scale;                  // 1, or 255/65535 for words
    float mean[3], deviation[3];
    int yuv[6];                   // black, then in 1/65536: luma, V in red, U and V in green, U in blue
    int tile_columns, tile_rows;  // of the image; whole blocks of 2^halvings each way
};

struct Sums {
    u32 histogram[256];
    u64 total;
    i64 laplacian;
    u64 laplacian_squared;
};

struct Pixel {
    int c[3]; // red, green, blue; all alike for mono
};

DEVICE int clamped(int value, int top) { return value < 0 ? 0 : value > top ? top : value; }

DEVICE int least(int one, int other) { return one < other ? one : other; }

DEVICE int most(int one, int other) { return one > other ? one : other; }

// A block's threads over rows of `across`, each its share.
struct Walk {
    int column, row, across, right, down;
    DEVICE explicit Walk(int across)
        : column(threadIdx.x % across), row(threadIdx.x / across), across(across), right(blockDim.x % across),
          down(blockDim.x / across) {}
    DEVICE void next() {
        column += right;
        row += down;
        if (column >= across) {
            column -= across;
            ++row;
        }
    }
};

// ---- a tile of the image, and what of the frame it needs ---------------------------------------------------------------

// A frame's rows, and of each the same bytes.
struct Lines {
    int top, count, first, bytes;
};

// `chroma`: the rows of NV12's second plane, counted from the frame's first; elsewhere none.
struct Tile {
    int column, row, columns, rows; // of the image
    Lines picture, chroma;
};

// The same in shared memory: line after line, each where its address stands between two multiples of 16.
struct Staged {
    const u8 *raw;
    int stride, picture_lines, shift, chroma_shift, step;
    DEVICE Staged(const u8 *raw, const Frame &f, const Tile &t)
        : raw(raw), stride((most(t.picture.bytes, t.chroma.bytes) + 30) & ~15), picture_lines(t.picture.count),
          shift(low(f, t.picture)), chroma_shift(low(f, t.chroma)), step((int)f.pitch & 15) {}
    static DEVICE int low(const Frame &f, const Lines &l) { return (int)((u64)f.data + (u64)(l.top * f.pitch + l.first)) & 15; }
    // Each line's begin in the frame, and its bytes; the chroma's come behind the picture's.
    static DEVICE const u8 *start(const Frame &f, const Tile &t, int line, int *bytes) {
        bool picture = line < t.picture.count;
        int row = picture ? t.picture.top + line : t.chroma.top + line - t.picture.count;
        *bytes = picture ? t.picture.bytes : t.chroma.bytes;
        return f.data + row * f.pitch + (picture ? t.picture.first : t.chroma.first);
    }
    DEVICE const u8 *picture(int line) const { return raw + line * stride + ((shift + line * step) & 15); }
    DEVICE const u8 *chroma(int line) const {
        return raw + (picture_lines + line) * stride + ((chroma_shift + line * step) & 15);
    }
};

DEVICE Pixel grey_pixel(int value) {
    Pixel pixel = {{value, value, value}};
    return pixel;
}

template <int BYTES> DEVICE int word_at(const u8 *at) { return BYTES == 1 ? at[0] : at[0] | at[1] << 8; }

// BT.601 of the plan's range.
DEVICE Pixel from_yuv(const Plan &p, int luma, int u, int v) {
    u -= 128;
    v -= 128;
    luma = (luma - p.yuv[0]) * p.yuv[1] + 32768;
    Pixel pixel = {{clamped((luma + p.yuv[2] * v) >> 16, 255), clamped((luma - p.yuv[3] * u - p.yuv[4] * v) >> 16, 255),
                    clamped((luma + p.yuv[5] * u) >> 16, 255)}};
    return pixel;
}

// ---- each format: the lines a tile needs, and one pixel of it ----------------------------------------------------------

template <int BYTES> struct Mono {
    enum { TOP = BYTES == 1 ? 255 : 65535, COLOUR = 0 };
    static DEVICE void need(const Plan &p, Tile &t) {
        t.picture = {p.y + t.row, t.rows, BYTES * (p.x + t.column), BYTES * t.columns};
    }
    static DEVICE Pixel at(const Staged &s, const Plan &p, const Tile &t, int x, int y) {
        return grey_pixel(word_at<BYTES>(s.picture(y) + BYTES * x));
    }
};

template <int RED> struct Thirds {
    enum { TOP = 255, COLOUR = 1 };
    static DEVICE void need(const Plan &p, Tile &t) { t.picture = {p.y + t.row, t.rows, 3 * (p.x + t.column), 3 * t.columns}; }
    static DEVICE Pixel at(const Staged &s, const Plan &p, const Tile &t, int x, int y) {
        const u8 *at = s.picture(y) + 3 * x;
        Pixel pixel = {{at[RED], at[1], at[2 - RED]}};
        return pixel;
    }
};

// Two pixels share one U and one V. FIRST: where the first luma stands.
template <int FIRST> struct Packed {
    enum { TOP = 255, COLOUR = 1 };
    static DEVICE void need(const Plan &p, Tile &t) {
        int left = (p.x + t.column) & ~1, right = (p.x + t.column + t.columns + 1) & ~1;
        t.picture = {p.y + t.row, t.rows, 2 * left, 2 * (right - left)};
    }
    static DEVICE Pixel at(const Staged &s, const Plan &p, const Tile &t, int x, int y) {
        int column = ((p.x + t.column) & 1) + x;
        const u8 *line = s.picture(y), *pair = line + 4 * (column >> 1);
        return from_yuv(p, line[2 * column + FIRST], pair[1 - FIRST], pair[3 - FIRST]);
    }
};

struct Nv12 {
    enum { TOP = 255, COLOUR = 1 };
    static DEVICE void need(const Plan &p, Tile &t) {
        int left = p.x + t.column, top = p.y + t.row, even = left & ~1;
        t.picture = {top, t.rows, left, t.columns};
        t.chroma = {p.frame_height + (top >> 1), ((top + t.rows + 1) >> 1) - (top >> 1), even,
                    ((left + t.columns + 1) & ~1) - even};
    }
    static DEVICE Pixel at(const Staged &s, const Plan &p, const Tile &t, int x, int y) {
        const u8 *pair = s.chroma((((p.y + t.row) & 1) + y) >> 1) + ((((p.x + t.column) & 1) + x) & ~1);
        return from_yuv(p, s.picture(y)[x], pair[0], pair[1]);
    }
};

// One RGB pixel a quad: the first halving of a Bayer picture.
template <int BYTES> struct Quads {
    enum { TOP = BYTES == 1 ? 255 : 65535, COLOUR = 1 };
    static DEVICE void need(const Plan &p, Tile &t) {
        t.picture = {p.y + 2 * t.row, 2 * t.rows, BYTES * (p.x + 2 * t.column), 2 * BYTES * t.columns};
    }
    static DEVICE Pixel at(const Staged &s, const Plan &p, const Tile &t, int x, int y) {
        Pixel pixel = {{0, 0, 0}};
        int greens = 0;
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
            int value = word_at<BYTES>(s.picture(2 * y + (corner >> 1)) + BYTES * (2 * x + (corner & 1)));
            if (p.colours[corner] == 1)
                greens += value;
            else if (p.colours[corner] == 0)
                pixel.c[0] = value;
            else
                pixel.c[2] = value;
        }
        pixel.c[1] = (greens + 1) >> 1;
        return pixel;
    }
};

// Bilinear: each missing colour is the mean of its nearest neighbours of that colour, direct ones before diagonal
// ones, halves rounded up; what lies beyond the frame does not count.
template <int BYTES> struct Bayer {
    enum { TOP = BYTES == 1 ? 255 : 65535, COLOUR = 1 };
    static DEVICE void need(const Plan &p, Tile &t) {
        int left = most(0, p.x + t.column - 1), right = least(p.frame_width, p.x + t.column + t.columns + 1);
        int top = most(0, p.y + t.row - 1), bottom = least(p.frame_height, p.y + t.row + t.rows + 1);
        t.picture = {top, bottom - top, BYTES * left, BYTES * (right - left)};
    }
    // Halves up; with no neighbour, 0.
    static DEVICE int mean(u32 sum, int count) { return count ? (int)((2 * sum + count) / (u32)(2 * count)) : 0; }
    static DEVICE Pixel at(const Staged &s, const Plan &p, const Tile &t, int x, int y) {
        int column = p.x + t.column + x, row = p.y + t.row + y, line = row - t.picture.top;
        int place = BYTES * column - t.picture.first;
        const u8 *own = s.picture(line) + place, *upper = s.picture(line - 1) + place, *lower = s.picture(line + 1) + place;
        int left = column > 0, right = column + 1 < p.frame_width, up = row > 0, down = row + 1 < p.frame_height;
        u32 beside = (left ? word_at<BYTES>(own - BYTES) : 0) + (right ? word_at<BYTES>(own + BYTES) : 0);
        u32 upright = (up ? word_at<BYTES>(upper) : 0) + (down ? word_at<BYTES>(lower) : 0);
        u32 diagonal = (up && left ? word_at<BYTES>(upper - BYTES) : 0) + (up && right ? word_at<BYTES>(upper + BYTES) : 0) +
                       (down && left ? word_at<BYTES>(lower - BYTES) : 0) + (down && right ? word_at<BYTES>(lower + BYTES) : 0);
        int corner = 2 * ((t.row + y) & 1) + ((t.column + x) & 1);
        int colour = p.colours[corner], next = p.colours[corner ^ 1];
        int here = word_at<BYTES>(own);
        Pixel pixel;
        if (colour == 1) { // a green: one colour beside it, the other above and below
            int across = mean(beside, left + right), along = mean(upright, up + down);
            pixel = {{next ? along : across, here, next ? across : along}};
        } else {
            int green = mean(beside + upright, left + right + up + down);
            int other = mean(diagonal, (left + right) * (up + down));
            pixel = {{colour ? other : here, green, colour ? here : other}};
        }
        return pixel;
    }
};

// ---- from the frame into shared memory -----------------------------------------------------------------------------

// `column`, `row`: its corner in the image; at the image's edge it is smaller.
template <class Format> DEVICE Tile tile_at(const Plan &p, int column, int row) {
    Tile t = {column, row, least(p.tile_columns, p.image_width - column), least(p.tile_rows, p.image_height - row), {}, {}};
    Format::need(p, t);
    return t;
}

#ifdef HOST
struct Sixteen {
    u8 bytes[16];
};
#else
typedef uint4 Sixteen;
#endif

DEVICE Sixteen sixteen_at(const u8 *at) {
    COUNT_READ(at, 16);
#ifdef HOST
    return *(const Sixteen *)at;
#else
    return __ldcs((const Sixteen *)at);
#endif
}

DEVICE u8 byte_at(const u8 *at) {
    COUNT_READ(at, 1);
    return *at;
}

// What the tile above needed too is moved, not read again: NV12's chroma of a pair of rows, the rows around Bayer's.
// Returns how many lines; `line`: the first of them.
template <class Format> DEVICE int keep(const Frame &f, const Plan &p, const Tile &t, u8 *raw, int *line) {
    Tile above = tile_at<Format>(p, t.column, t.row - p.tile_rows);
    int picture = above.picture.top + above.picture.count - t.picture.top;
    int chroma = above.chroma.top + above.chroma.count - t.chroma.top;
    int kept = most(picture, chroma);
    int from = picture ? above.picture.count - kept : above.picture.count + above.chroma.count - kept;
    *line = picture ? 0 : t.picture.count;
    int pieces = Staged(raw, f, t).stride / 16;
    Sixteen *lines = (Sixteen *)raw;
#pragma unroll 1
    for (int at = threadIdx.x; at < kept * pieces; at += blockDim.x)
        lines[*line * pieces + at] = lines[from * pieces + at];
    return kept;
}

// Each line between two multiples of 16 by 16 bytes a thread, what is left at its ends by one; not a byte beside it.
// The lines from `kept_line` on, `kept` of them, are there. Four loads are on their way before the first is stored.
DEVICE void stage(const Frame &f, const Tile &t, u8 *raw, int kept_line, int kept) {
    Staged s(raw, f, t);
    int count = t.picture.count + t.chroma.count;
#pragma unroll 1
    for (Walk w(32); w.row < count; w.next()) {
        if (w.row >= kept_line && w.row < kept_line + kept)
            continue;
        int bytes;
        const u8 *start = s.start(f, t, w.row, &bytes);
        int begin = (int)((u64)start & 15), end = begin + bytes;
        int body = least((begin + 15) & ~15, end), rest = most(body, end & ~15);
        int at = w.column < 16 ? begin + w.column : rest + w.column - 16;
        if (at < (w.column < 16 ? body : end))
            raw[w.row * s.stride + at] = byte_at(start - begin + at);
    }
#pragma unroll 1
    for (Walk w(s.stride / 16); w.row < count;) {
        Sixteen held[4];
        int place[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            place[i] = -1;
            if (w.row < count && (w.row < kept_line || w.row >= kept_line + kept)) {
                int bytes;
                const u8 *start = s.start(f, t, w.row, &bytes);
                int begin = (int)((u64)start & 15);
                if (16 * w.column >= begin && 16 * w.column + 16 <= begin + bytes) {
                    place[i] = w.row * (s.stride / 16) + w.column;
                    held[i] = sixteen_at(start - begin + 16 * w.column);
                }
            }
            w.next();
        }
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (place[i] >= 0)
                ((Sixteen *)raw)[place[i]] = held[i];
    }
}

// ---- gather -----------------------------------------------------------------------------------------------------

DEVICE int luma_of(const Pixel &pixel) {
    return (int)((9798u * pixel.c[0] + 19235u * pixel.c[1] + 3735u * pixel.c[2] + 16384u) >> 15);
}

template <class Format> DEVICE Pixel fetch(const Staged &s, const Plan &p, const Tile &t, int x, int y) {
    Pixel pixel = Format::at(s, p, t, x, y);
    if (Format::COLOUR && p.balanced)
        for (int c = 0; c < 3; ++c) {
            u64 gained = ((u64)pixel.c[c] * (u32)p.gains[c] + 32768) >> 16;
            pixel.c[c] = gained > Format::TOP ? (int)Format::TOP : (int)gained;
        }
    return pixel;
}

// Counts it, and returns its grey.
template <class Format> DEVICE int counted(const Pixel &pixel, u32 *histogram, u64 *total) {
    int grey = Format::COLOUR ? luma_of(pixel) : pixel.c[0];
    ADD32(&histogram[(Format::TOP > 255 ? grey >> 8 : grey) * COPIES + threadIdx.x % COPIES], 1u);
    if (Format::TOP > 255)
        *total += grey; // of bytes the histogram has it
    return grey;
}

// A tile's values after so many halvings: in shared memory, or what gather leaves.
template <class Stored> struct Level {
    Stored *values;
    int across;
    i64 plane;
    DEVICE Level(const Plan &p, const Tile &t, int halvings, Stored *first, Stored *second, Stored *halved) {
        if (halvings == p.halvings) {
            across = p.out_width;
            plane = (i64)p.out_width * p.out_height;
            values = halved + (i64)(t.row >> halvings) * across + (t.column >> halvings);
        } else {
            across = p.tile_columns >> halvings;
            plane = across * (p.tile_rows >> halvings);
            values = halvings & 1 ? first : second;
        }
    }
    DEVICE Stored &at(int c, int column, int row) const { return values[c * plane + (i64)row * across + column]; }
};

template <class Format, class Stored>
DEVICE void pixels_as_they_are(const Staged &s, const Plan &p, const Tile &t, Level<Stored> to, u32 *histogram, u64 *total) {
    bool mono = !Format::COLOUR || p.channels == 1;
#pragma unroll 1
    for (Walk w(t.columns); w.row < t.rows; w.next()) {
        Pixel pixel = fetch<Format>(s, p, t, w.column, w.row);
        int grey = counted<Format>(pixel, histogram, total);
        to.at(0, w.column, w.row) = (Stored)(mono ? grey : pixel.c[0]);
        for (int c = 1; c < 3 && !mono; ++c)
            to.at(c, w.column, w.row) = (Stored)pixel.c[c];
    }
}

// The first (a + b + c + d + 2) >> 2. What is not whole at the image's edge is only counted.
template <class Format, class Stored>
DEVICE void pixels_halved(const Staged &s, const Plan &p, const Tile &t, Level<Stored> to, u32 *histogram, u64 *total) {
    bool mono = !Format::COLOUR || p.channels == 1;
#pragma unroll 1
    for (Walk w((t.columns + 1) / 2); w.row < (t.rows + 1) / 2; w.next()) {
        int sums[3] = {2, 2, 2};
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
            int x = 2 * w.column + (corner & 1), y = 2 * w.row + (corner >> 1);
            if (x >= t.columns || y >= t.rows)
                continue;
            Pixel pixel = fetch<Format>(s, p, t, x, y);
            int grey = counted<Format>(pixel, histogram, total);
            sums[0] += mono ? grey : pixel.c[0];
            sums[1] += pixel.c[1];
            sums[2] += pixel.c[2];
        }
        if (2 * w.column + 1 >= t.columns || 2 * w.row + 1 >= t.rows)
            continue;
        to.at(0, w.column, w.row) = (Stored)(sums[0] >> 2);
        for (int c = 1; c < 3 && !mono; ++c)
            to.at(c, w.column, w.row) = (Stored)(sums[c] >> 2);
    }
}

template <class Stored> DEVICE void halve(Level<Stored> from, Level<Stored> to, int columns, int rows, int channels) {
    if (columns < 1)
        return;
#pragma unroll 1
    for (Walk w(columns); w.row < rows; w.next())
        for (int c = 0; c < channels; ++c) {
            int x = 2 * w.column, y = 2 * w.row;
            int sum = from.at(c, x, y) + from.at(c, x + 1, y) + from.at(c, x, y + 1) + from.at(c, x + 1, y + 1);
            to.at(c, w.column, w.row) = (Stored)((sum + 2) >> 2);
        }
}

// A block takes tiles one below the other, so that lines which two of them need stay.
template <class Format, class Stored>
DEVICE void gather(const Frame *frame, const Plan &p, Stored *halved, Sums *sums) {
    SHARED u8 raw[RAW_BYTES];
    SHARED Stored first[FIRST_BYTES / sizeof(Stored)];
    SHARED Stored second[SECOND_BYTES / sizeof(Stored)];
    SHARED u32 histogram[256 * COPIES];
    SHARED Frame next;
    if (threadIdx.x == 0)
        next = *frame;
#pragma unroll 1
    for (int bin = threadIdx.x; bin < 256 * COPIES; bin += blockDim.x)
        histogram[bin] = 0;
    SYNC();
    Frame f = next;
    u64 total = 0;
    int channels = !Format::COLOUR || p.channels == 1 ? 1 : 3;
    RETURN_UNLESS(p.halvings < 2 || channels * (p.tile_columns / 2) * (p.tile_rows / 2) * sizeof(Stored) <= FIRST_BYTES);
    int down = (p.image_height + p.tile_rows - 1) / p.tile_rows;
    int tiles = down * ((p.image_width + p.tile_columns - 1) / p.tile_columns);
    int begin = (int)((i64)tiles * blockIdx.x / gridDim.x), end = (int)((i64)tiles * (blockIdx.x + 1) / gridDim.x);
#pragma unroll 1
    for (int at = begin; at < end; ++at) {
        Tile t = tile_at<Format>(p, at / down * p.tile_columns, at % down * p.tile_rows);
        RETURN_UNLESS(Staged(raw, f, t).stride * (t.picture.count + t.chroma.count) <= RAW_BYTES);
        int kept_line = 0, kept = at > begin && t.row ? keep<Format>(f, p, t, raw, &kept_line) : 0;
        SYNC();
        stage(f, t, raw, kept_line, kept);
        SYNC();
        Staged s(raw, f, t);
        Level<Stored> to(p, t, p.halvings ? 1 : 0, first, second, halved);
        if (p.halvings)
            pixels_halved<Format, Stored>(s, p, t, to, histogram, &total);
        else
            pixels_as_they_are<Format, Stored>(s, p, t, to, histogram, &total);
#pragma unroll 1
        for (int halvings = 2; halvings <= p.halvings; ++halvings) {
            SYNC();
            Level<Stored> from = to;
            to = Level<Stored>(p, t, halvings, first, second, halved);
            halve(from, to, t.columns >> halvings, t.rows >> halvings, channels);
        }
        SYNC();
    }
    for (int bin = threadIdx.x; bin < 256; bin += blockDim.x) {
        u32 count = 0;
        for (int copy = 0; copy < COPIES; ++copy)
            count += histogram[bin * COPIES + copy];
        if (count)
            ADD32(&sums->histogram[bin], count);
        if (Format::TOP == 255)
            total += (u64)count * bin;
    }
    total = WARP_SUM(total);
    if (SPEAKS_FOR_WARP && total)
        ADD64(&sums->total, total);
}

// ---- sample -----------------------------------------------------------------------------------------------------

template <class Stored> DEVICE int halved_grey(const Plan &p, const Stored *halved, int channels, int x, int y) {
    i64 plane = (i64)p.out_width * p.out_height, place = (i64)y * p.out_width + x;
    if (channels == 1)
        return halved[place];
    Pixel pixel = {{halved[place], halved[plane + place], halved[2 * plane + place]}};
    return luma_of(pixel);
}

// rows/columns: for each of the content's, the upper or left neighbour; shares: how much the other one counts.
template <class Stored>
DEVICE void sample(const Plan &p, int channels, const Stored *halved, const int *rows, const float *row_shares,
                   const int *columns, const float *column_shares, float *tensor, Sums *sums) {
    i64 plane = (i64)p.out_width * p.out_height;
    u32 area = (u32)p.target_width * p.target_height, width = p.target_width;
    u32 thread = blockIdx.x * blockDim.x + threadIdx.x, threads = gridDim.x * blockDim.x;
    for (u32 at = thread; at < area * p.channels; at += threads) {
        int c = (int)(at / area), y = (int)(at % area / width), x = (int)(at % area % width);
        float value = p.pad;
        int row = y - p.top, column = x - p.left;
        if (row >= 0 && column >= 0 && row < p.content_height && column < p.content_width) {
            const Stored *from = halved + (channels == 1 ? 0 : c * plane);
            int top = clamped(rows[row], p.out_height - 1), bottom = clamped(rows[row] + 1, p.out_height - 1);
            int left = clamped(columns[column], p.out_width - 1), right = clamped(columns[column] + 1, p.out_width - 1);
            float down = row_shares[row], across = column_shares[column];
            const Stored *upper = from + (i64)top * p.out_width, *lower = from + (i64)bottom * p.out_width;
            float first = upper[left] * p.scale * (1 - down) + lower[left] * p.scale * down;
            float second = upper[right] * p.scale * (1 - down) + lower[right] * p.scale * down;
            value = first * (1 - across) + second * across;
        }
        tensor[at] = (value / 255.0f - p.mean[c]) / p.deviation[c];
    }
    i64 sum = 0;
    u64 squares = 0;
    u32 across = p.out_width < 3 ? 0 : p.out_width - 2, inner = p.out_height < 3 ? 0 : across * (p.out_height - 2);
    for (u32 at = thread; at < inner; at += threads) {
        int x = (int)(at % across) + 1, y = (int)(at / across) + 1;
        i64 edge = (i64)halved_grey(p, halved, channels, x, y - 1) + halved_grey(p, halved, channels, x, y + 1) +
                   halved_grey(p, halved, channels, x - 1, y) + halved_grey(p, halved, channels, x + 1, y) -
                   4 * (i64)halved_grey(p, halved, channels, x, y);
        sum += edge;
        squares += (u64)(edge * edge);
    }
    SHARED u64 block_sum;
    SHARED u64 block_squares;
    if (threadIdx.x == 0)
        block_sum = block_squares = 0;
    SYNC();
    u64 edges = WARP_SUM((u64)sum);
    squares = WARP_SUM(squares);
    if (SPEAKS_FOR_WARP) {
        ADD64(&block_sum, edges);
        ADD64(&block_squares, squares);
    }
    SYNC();
    if (threadIdx.x == 0) {
        ADD64((u64 *)&sums->laplacian, block_sum);
        ADD64(&sums->laplacian_squared, block_squares);
    }
}

// ---- what is launched ---------------------------------------------------------------------------------------------

#define GATHER(name, format, stored)                                                                                     \
    GLOBAL LAUNCHED_BY_256(4) gather_##name(const Frame *frame, const Plan plan, stored *halved, Sums *sums) {                              \
        gather<format, stored>(frame, plan, halved, sums);                                                               \
    }
#define SAMPLE(name, stored)                                                                                             \
    GLOBAL sample_##name(const Plan plan, int channels, const stored *halved, const int *rows, const float *row_shares,   \
                         const int *columns, const float *column_shares, float *tensor, Sums *sums) {                    \
        sample<stored>(plan, channels, halved, rows, row_shares, columns, column_shares, tensor, sums);                  \
    }

GATHER(mono8, Mono<1>, u8)
GATHER(mono16, Mono<2>, u16)
GATHER(rgb8, Thirds<0>, u8)
GATHER(bgr8, Thirds<2>, u8)
GATHER(yuyv, Packed<0>, u8)
GATHER(uyvy, Packed<1>, u8)
GATHER(nv12, Nv12, u8)
GATHER(bayer8, Bayer<1>, u8)
GATHER(bayer16, Bayer<2>, u16)
GATHER(quads8, Quads<1>, u8)
GATHER(quads16, Quads<2>, u16)
SAMPLE(u8, u8)
SAMPLE(u16, u16)
