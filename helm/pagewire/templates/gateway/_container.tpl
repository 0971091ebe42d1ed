{{- define "pagewire.gatewayContainer" -}}
{{- $gateway := .Values.gateway -}}
- name: gateway
  image: {{ include "pagewire.image" (dict "root" . "image" $gateway.image) }}
  imagePullPolicy: {{ $gateway.image.pullPolicy }}
  command: [python, -m, scheduler_service.gateway]
  args:
    {{- include "pagewire.gatewayArgs" . | nindent 4 }}
  {{- with $gateway.extraEnv }}
  env:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  ports:
    - name: grpc
      containerPort: 50051
    {{- if $gateway.http.enabled }}
    - name: http
      containerPort: 8000
    {{- end }}
    - name: health
      containerPort: 8086
  startupProbe:
    grpc:
      port: 8086
      service: liveness
    periodSeconds: 2
    timeoutSeconds: 2
    failureThreshold: 60
  readinessProbe:
    grpc:
      port: 8086
    periodSeconds: 5
    timeoutSeconds: 2
    failureThreshold: 3
  livenessProbe:
    grpc:
      port: 8086
      service: liveness
    periodSeconds: 10
    timeoutSeconds: 5
    failureThreshold: 6
  {{- if $gateway.preStopSeconds }}
  lifecycle:
    preStop:
      sleep:
        seconds: {{ $gateway.preStopSeconds }}
  {{- end }}
  {{- include "pagewire.containerDefaults" . | nindent 2 }}
  resources:
    {{- toYaml $gateway.resources | nindent 4 }}
  volumeMounts:
    {{- include "pagewire.modelMount" . | nindent 4 }}
    - name: tmp
      mountPath: /tmp
    - name: curve
      mountPath: /etc/pagewire/curve
      readOnly: true
    {{- if .Values.tls.enabled }}
    - name: tls
      mountPath: /etc/pagewire/tls
      readOnly: true
    {{- end }}
    {{- if .Values.tls.clientCaSecretName }}
    - name: client-ca
      mountPath: /etc/pagewire/client-ca
      readOnly: true
    {{- end }}
    {{- if .Values.apiKeys.enabled }}
    - name: api-keys
      mountPath: /etc/pagewire/api-keys
      readOnly: true
    {{- end }}
{{- end -}}

{{- define "pagewire.gatewayArgs" -}}
{{- $gateway := .Values.gateway -}}
- --model={{ include "pagewire.modelPath" . }}
- --model-name={{ include "pagewire.modelName" . }}
{{- range default (list (include "pagewire.schedulerAddress" .)) $gateway.schedulerAddresses }}
- --scheduler-address={{ . }}
{{- end }}
- --routing={{ $gateway.routing }}
- --curve-keys=/etc/pagewire/curve
- --listen=0.0.0.0:50051
- --health-listen=0.0.0.0:8086
{{- if $gateway.http.enabled }}
- --http=0.0.0.0:8000
{{- end }}
{{- /* Schedulers tell their metrics themselves, but an endpoint picker asks the endpoints. */}}
{{- if not .Values.inferenceGateway.pool.enabled }}
- --no-engine-metrics
{{- end }}
{{- if .Values.tls.enabled }}
- --tls-cert=/etc/pagewire/tls/tls.crt
- --tls-key=/etc/pagewire/tls/tls.key
{{- if .Values.tls.clientAuth }}
- --tls-client-ca={{ ternary "/etc/pagewire/client-ca" "/etc/pagewire/tls" (ne .Values.tls.clientCaSecretName "") }}/ca.crt
{{- end }}
{{- end }}
{{- if .Values.apiKeys.enabled }}
- --api-keys=/etc/pagewire/api-keys/{{ .Values.apiKeys.secretKey }}
{{- end }}
- --drain-timeout={{ $gateway.drainSeconds }}
- --recovery-timeout-s={{ $gateway.recoveryTimeoutSeconds }}
{{- if $gateway.maxConnectionAgeSeconds }}
- --max-connection-age={{ $gateway.maxConnectionAgeSeconds }}
{{- end }}
- --max-message-bytes={{ int64 $gateway.maxMessageBytes }}
{{- include "pagewire.logArgs" . }}
{{- with $gateway.extraArgs }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* What every process is told about logs and traces. */}}
{{- define "pagewire.logArgs" }}
- --log-level={{ .Values.logLevel }}
- --log-format=json
{{- with .Values.tracing.otlpEndpoint }}
- --otlp-endpoint={{ . }}
{{- end }}
{{- end -}}

{{- define "pagewire.gatewayVolumes" -}}
{{- include "pagewire.modelVolume" (dict "root" . "tokenizerOnly" true) | trim }}
- name: tmp
  emptyDir: {}
- name: curve
  secret:
    secretName: {{ include "pagewire.curveSecretName" . }}
    defaultMode: 0440
    items:
      - key: gateway.secret
        path: gateway.secret
      - key: gateway.public
        path: gateway.public
      - key: scheduler.public
        path: scheduler.public
{{- if .Values.tls.enabled }}
- name: tls
  secret:
    secretName: {{ include "pagewire.tlsSecretName" . }}
    defaultMode: 0440
{{- end }}
{{- with .Values.tls.clientCaSecretName }}
- name: client-ca
  secret:
    secretName: {{ . }}
    defaultMode: 0440
    items:
      - key: ca.crt
        path: ca.crt
{{- end }}
{{- if .Values.apiKeys.enabled }}
- name: api-keys
  secret:
    secretName: {{ include "pagewire.apiKeysSecretName" . }}
    defaultMode: 0440
{{- end }}
{{- end -}}
