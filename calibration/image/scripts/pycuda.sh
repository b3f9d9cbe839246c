# Runs inside a layer over the root file system that is thrown away: PyCUDA's wheel, from JetPack's own CUDA packages.
# CUDA_PACKAGES: with the headers; LISTS: apt's options; OUT: where the wheels go.
apt-get $LISTS update
apt-get $LISTS install --yes --no-install-recommends g++ python3-dev python3-venv $CUDA_PACKAGES
python3 -m venv /root/build
export CUDA_ROOT=/usr/local/cuda PATH=/usr/local/cuda/bin:$PATH CPATH=/usr/local/cuda/include TMPDIR=/root
# NVIDIA's driver package has the real libcuda; it lies where no linker looks.
export LIBRARY_PATH=/usr/local/cuda/lib64/stubs:/usr/lib/aarch64-linux-gnu/nvidia:/usr/lib/aarch64-linux-gnu/tegra
. /tmp/shared/pycuda_wheel.sh
