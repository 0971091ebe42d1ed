# syntax=docker/dockerfile:1
# The images of a service:
#
#   docker build --target gateway .       also fetches models from the Hub, and has the command line `pagewire`
#   docker build --target scheduler .
#   docker build --target worker .        for NVIDIA GPUs
#   docker build --target worker-cpu --build-arg TORCH_INDEX=URL .    URL: PyTorch's index of builds for CPUs
#
# Versions come from docker/*.lock, which docker/lock.sh writes. The last stages have neither compilers nor pip, run as
# user 10001 and need no writable file system but /tmp, /run/pagewire and /var/cache/pagewire.
ARG PYTHON_IMAGE=python:3.12-slim-bookworm

# ---- Where things are built: a C compiler, and the project's own wheel.
FROM ${PYTHON_IMAGE} AS build
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY docker/build.lock docker/build.lock
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv --without-pip /opt/build && \
    python -m pip --python /opt/build install --no-deps --require-hashes --requirement docker/build.lock
COPY pyproject.toml README.md LICENSE ./
COPY proto proto
COPY client client
COPY scheduler_service scheduler_service
COPY gpu_worker gpu_worker
RUN python -m pip --python /opt/build wheel --no-deps --no-build-isolation --no-cache-dir --wheel-dir /wheels .

# ---- One virtual environment for each image.
FROM build AS gateway-build
COPY docker/gateway.lock docker/gateway.lock
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv --without-pip /opt/pagewire && \
    python -m pip --python /opt/pagewire install --no-deps --require-hashes --requirement docker/gateway.lock && \
    python -m pip --python /opt/pagewire install --no-deps --no-index --find-links /wheels pagewire

FROM build AS scheduler-build
COPY docker/scheduler.lock docker/scheduler.lock
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv --without-pip /opt/pagewire && \
    python -m pip --python /opt/pagewire install --no-deps --require-hashes --requirement docker/scheduler.lock && \
    python -m pip --python /opt/pagewire install --no-deps --no-index --find-links /wheels pagewire

FROM build AS worker-build
COPY docker/worker.lock docker/triton_driver.py docker/
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv --without-pip /opt/pagewire && \
    python -m pip --python /opt/pagewire install --no-deps --require-hashes --requirement docker/worker.lock && \
    python -m pip --python /opt/pagewire install --no-deps --no-index --find-links /wheels pagewire
# Triton is linked to the driver library that a machine with a GPU will have; here an empty one stands in for it.
ENV TRITON_LIBCUDA_PATH=/opt/pagewire/driver
RUN mkdir /opt/pagewire/driver && \
    gcc -shared -o /opt/pagewire/driver/libcuda.so.1 -x c /dev/null && \
    TRITON_CACHE_DIR=/opt/pagewire/triton /opt/pagewire/bin/python -I docker/triton_driver.py && \
    rm /opt/pagewire/driver/libcuda.so.1

FROM build AS worker-cpu-build
ARG TORCH=torch==2.13.0
ARG TORCH_INDEX
COPY docker/worker-cpu.lock docker/worker-cpu.lock
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv --without-pip /opt/pagewire && \
    python -m pip --python /opt/pagewire install --no-deps --require-hashes --requirement docker/worker-cpu.lock && \
    python -m pip --python /opt/pagewire install --no-deps --no-index --find-links /wheels pagewire
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m pip --python /opt/pagewire install --no-deps ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$TORCH"
RUN /opt/pagewire/bin/python -I -m gpu_worker.kernels.prebuilt

# ---- What all images have in common.
FROM ${PYTHON_IMAGE} AS base
RUN python -m pip uninstall --yes pip && \
    install --directory --owner 10001 --group 10001 /run/pagewire /var/cache/pagewire /models
ENV PATH=/opt/pagewire/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/var/cache/pagewire \
    XDG_CACHE_HOME=/var/cache/pagewire
USER 10001:10001
WORKDIR /

FROM base AS gateway
COPY --from=gateway-build /opt/pagewire /opt/pagewire
CMD ["python", "-m", "scheduler_service.gateway", "--help"]

FROM base AS scheduler
COPY --from=scheduler-build /opt/pagewire /opt/pagewire
CMD ["python", "-m", "scheduler_service.core", "--help"]

FROM base AS worker-cpu
COPY --from=worker-cpu-build /opt/pagewire /opt/pagewire
CMD ["python", "-m", "gpu_worker", "--help"]

FROM base AS worker
ENV TRITON_CACHE_DIR=/var/cache/pagewire/triton \
    TRITON_LIBCUDA_PATH=/opt/pagewire/driver \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=worker-build /opt/pagewire /opt/pagewire
# A volume that is mounted there must be given these files again: cp -r /opt/pagewire/triton /var/cache/pagewire/
COPY --from=worker-build --chown=10001:10001 /opt/pagewire/triton /var/cache/pagewire/triton
CMD ["python", "-m", "gpu_worker", "--help"]
