# Runs inside a layer over the root file system that is thrown away: PyCUDA's wheel, from JetPack's own CUDA packages.
# REQUIREMENT: what pip builds; CUDA_PACKAGES: with the headers; LISTS: apt's options; OUT: where the wheels go.
apt-get $LISTS update
apt-get $LISTS install --yes --no-install-recommends g++ python3-dev python3-venv $CUDA_PACKAGES
python3 -m venv /root/build
export CUDA_ROOT=/usr/local/cuda PATH=/usr/local/cuda/bin:$PATH CPATH=/usr/local/cuda/include TMPDIR=/root
# NVIDIA's driver package has the real libcuda; it lies where no linker looks.
export LIBRARY_PATH=/usr/local/cuda/lib64/stubs:/usr/lib/aarch64-linux-gnu/nvidia:/usr/lib/aarch64-linux-gnu/tegra
/root/build/bin/pip wheel --no-binary pycuda --wheel-dir "$OUT" "$REQUIREMENT"
# What was built asks for the driver by its name, or nothing of it would work on the box.
/root/build/bin/python -m zipfile -e "$(ls "$OUT"/pycuda-*.whl)" /root/built
readelf -d /root/built/pycuda/_driver*.so | grep -q 'libcuda\.so\.1'
