{{/* What gateways and engines alike may reach: names, the Hub, the collector of traces. */}}
{{- define "pagewire.commonEgress" -}}
- ports:
    - port: 53
      protocol: UDP
    - port: 53
      protocol: TCP
{{- if eq .Values.model.source "hub" }}
- ports:
    - port: 443
{{- end }}
{{- with .Values.tracing.otlpEndpoint }}
- ports:
    - port: {{ regexFind ":[0-9]+$" (urlParse .).host | trimPrefix ":" | default (ternary "443" "80" (hasPrefix "https:" .)) }}
{{- end }}
{{- with .Values.networkPolicy.extraEgress }}
{{ toYaml . }}
{{- end }}
{{- end -}}
