# The end of pycuda.sh and of pycuda_from_wheels.sh: headers and libraries are there, and a Python in /root/build. All that
# comes from the package index comes by its digest; what pip would fetch by itself to build with is there already.
/root/build/bin/pip install --quiet --require-hashes --only-binary :all: --no-deps \
  -r /tmp/shared/pycuda_build.lock -r /tmp/shared/numpy.txt
/root/build/bin/pip wheel --require-hashes --only-binary :all: --no-deps --no-binary pycuda --no-build-isolation \
  --wheel-dir "$OUT" -r /tmp/shared/pycuda.lock
# What was built asks for the driver by its name, or nothing of it would work on the box.
/root/build/bin/python -m zipfile -e "$(ls "$OUT"/pycuda-*.whl)" /root/built
readelf -d /root/built/pycuda/_driver*.so | grep -q 'libcuda\.so\.1'
