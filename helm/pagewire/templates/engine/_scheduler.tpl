{{- define "pagewire.schedulerContainer" -}}
{{- $scheduler := .Values.scheduler -}}
- name: scheduler
  image: {{ include "pagewire.image" (dict "root" . "image" $scheduler.image) }}
  imagePullPolicy: {{ $scheduler.image.pullPolicy }}
  command: [python, -m, scheduler_service.supervisor.container]
  args:
    - --name=scheduler
    - --health-listen=0.0.0.0:8086
    - --step-timeout=30
    - --grace-s={{ add .Values.engine.drainSeconds 5 }}
    - --log-level={{ .Values.logLevel }}
    - --log-format=json
    - --
    - python
    - -m
    - scheduler_service.core
    {{- include "pagewire.schedulerArgs" . | nindent 4 }}
  {{- with $scheduler.extraEnv }}
  env:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  ports:
    - name: requests
      containerPort: 5555
    {{- if .Values.engine.multiHost.enabled }}
    - name: workers
      containerPort: 5556
    {{- end }}
    - name: metrics
      containerPort: 9400
    - name: health
      containerPort: 8086
  startupProbe:
    grpc:
      port: 8086
    periodSeconds: 2
    timeoutSeconds: 2
    failureThreshold: 60
  readinessProbe:
    grpc:
      port: 8086
    periodSeconds: 5
    timeoutSeconds: 2
  livenessProbe:
    grpc:
      port: 8086
      service: liveness
    periodSeconds: 10
    timeoutSeconds: 5
    failureThreshold: 6
  {{- if .Values.engine.preStopSeconds }}
  lifecycle:
    preStop:
      sleep:
        seconds: {{ .Values.engine.preStopSeconds }}
  {{- end }}
  {{- include "pagewire.containerDefaults" . | nindent 2 }}
  resources:
    {{- toYaml $scheduler.resources | nindent 4 }}
  volumeMounts:
    - name: tmp
      mountPath: /tmp
    - name: run
      mountPath: /run/pagewire
    - name: curve
      mountPath: /etc/pagewire/curve
      readOnly: true
{{- end -}}

{{- define "pagewire.schedulerArgs" -}}
{{- $scheduler := .Values.scheduler -}}
- --request-address=tcp://0.0.0.0:5555
- --worker-address={{ ternary "tcp://0.0.0.0:5556" "ipc:///run/pagewire/workers.sock" .Values.engine.multiHost.enabled }}
- --curve-keys=/etc/pagewire/curve
- --tensor-parallel-size={{ .Values.worker.tensorParallelSize }}
- --model-name={{ include "pagewire.modelName" . }}
- --metrics=0.0.0.0:9400
- --orphan-grace-s={{ $scheduler.orphanGraceSeconds }}
- --drain-timeout={{ .Values.engine.drainSeconds }}
{{- with $scheduler.blockSize }}
- --block-size={{ int64 . }}
{{- end }}
{{- with $scheduler.maxNumSeqs }}
- --max-num-seqs={{ int64 . }}
{{- end }}
{{- with $scheduler.maxNumBatchedTokens }}
- --max-num-batched-tokens={{ int64 . }}
{{- end }}
{{- with $scheduler.maxModelLen }}
- --max-model-len={{ int64 . }}
{{- end }}
{{- with $scheduler.maxWaitingRequests }}
- --max-waiting-requests={{ int64 . }}
{{- end }}
{{- include "pagewire.logArgs" . }}
{{- with $scheduler.extraArgs }}
{{ toYaml . }}
{{- end }}
{{- end -}}
