# As pycuda.sh, without NVIDIA's package lists: CUDA's headers come from its wheels on the package index. What is built
# differs in nothing, for PyCUDA takes headers of CUDA and links to two libraries by their names.
# LISTS: apt's options; OUT: where the wheels go.
apt-get $LISTS update
apt-get $LISTS install --yes --no-install-recommends g++ python3-dev python3-venv
python3 -m venv /root/build
/root/build/bin/pip install --quiet --require-hashes --only-binary :all: --no-deps --target /root/cuda-wheels \
  -r /tmp/shared/cuda_headers.lock
mkdir -p /root/cuda/lib64
for part in /root/cuda-wheels/nvidia/*; do
  [ ! -d "$part/include" ] || cp -r "$part/include" /root/cuda/
done
find /root/cuda-wheels -name '*.so*' -exec cp {} /root/cuda/lib64/ ';'
ln -s "$(cd /root/cuda/lib64 && ls libcurand.so.*)" /root/cuda/lib64/libcurand.so
# The driver's library comes with the driver. To link, its name and its functions' names are enough; without those the
# linker leaves it out, and PyCUDA would not find it on the box.
cat /root/cuda/include/cuda*.h | grep -oE '\bcu[A-Z][A-Za-z0-9_]*' | sort -u | sed 's/.*/int &(void) { return 0; }/' |
  gcc -w -shared -fPIC -Wl,-soname,libcuda.so.1 -x c - -o /root/cuda/lib64/libcuda.so
export CPATH=/root/cuda/include LIBRARY_PATH=/root/cuda/lib64 TMPDIR=/root
. /tmp/shared/pycuda_wheel.sh
