# Runs inside a layer over the root file system that is thrown away: jetson-inference with its jetson-utils, for Orin.
# SOURCE, COMMIT: of jetson-inference, which names jetson-utils' commit; CUDA_PACKAGES; LISTS: apt's options; OUT: where
# the finished files go; PACKAGES: the file for what they are linked to; NUMPY: pip's list with it. Nobody has run this
# yet: it needs NVIDIA's package lists and some hours.
apt-get $LISTS update
apt-get $LISTS install --yes --no-install-recommends g++ git cmake make ca-certificates python3-dev python3-pip \
  libnvinfer-dev libnvinfer-plugin-dev libnvonnxparsers-dev libglew-dev libgstreamer1.0-dev \
  libgstreamer-plugins-base1.0-dev libgstreamer-plugins-bad1.0-dev libgstrtspserver-1.0-dev libjson-glib-dev \
  libsoup2.4-dev libxml2-dev $CUDA_PACKAGES
# The distribution's numpy is 1.x, the firmware's 2.x: an extension for the older one is refused beside the newer.
PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --only-binary :all: --require-hashes --no-deps -r "$NUMPY"
python3 -c "import numpy"  # where it cannot be imported, CMake leaves it out and says nothing
git clone --no-checkout "$SOURCE" /root/source
cd /root/source
git checkout --quiet "$COMMIT"
git submodule update --init --recursive utils tools
# One GPU instead of the four on its list: a quarter of the time.
sed -i '/gencode arch=compute_\(53\|62\|72\)/d' CMakeLists.txt utils/CMakeLists.txt
mkdir build
cd build
cmake -DCMAKE_POLICY_VERSION_MINIMUM=3.5 -DBUILD_INTERACTIVE=OFF -DBUILD_DEPS=OFF ..
make -j"$(nproc)"
make install DESTDIR="$OUT"
. /tmp/shared/runtime_packages.sh
