{{/* A container that calls the service, with what it must show. */}}
{{- define "pagewire.clientEnv" -}}
{{- $smoke := .Values.tests.smoke -}}
- name: PAGEWIRE_ADDRESS
  value: {{ include "pagewire.gatewayHost" . }}:{{ .Values.gateway.service.grpcPort }}
{{- with $smoke.apiKeySecretName }}
- name: PAGEWIRE_API_KEY
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: {{ $smoke.apiKeySecretKey }}
{{- end }}
{{- if .Values.tls.enabled }}
- name: PAGEWIRE_TLS_CA
  value: /etc/pagewire/tls/ca.crt
{{- if $smoke.clientCertSecretName }}
- name: PAGEWIRE_TLS_CERT
  value: /etc/pagewire/tls/tls.crt
- name: PAGEWIRE_TLS_KEY
  value: /etc/pagewire/tls/tls.key
{{- end }}
{{- end }}
{{- end -}}

{{- define "pagewire.clientMounts" -}}
- name: tmp
  mountPath: /tmp
{{- if .Values.tls.enabled }}
- name: tls
  mountPath: /etc/pagewire/tls
  readOnly: true
{{- end }}
{{- end -}}

{{- define "pagewire.clientVolumes" -}}
- name: tmp
  emptyDir: {}
{{- if .Values.tls.enabled }}
- name: tls
  secret:
    secretName: {{ default (include "pagewire.tlsSecretName" .) .Values.tests.smoke.clientCertSecretName }}
    defaultMode: 0440
    {{- if not .Values.tests.smoke.clientCertSecretName }}
    items:
      - key: ca.crt
        path: ca.crt
    {{- end }}
{{- end }}
{{- end -}}

{{- define "pagewire.clientResources" -}}
requests:
  cpu: 250m
  memory: 128Mi
limits:
  memory: 1Gi
{{- end -}}
