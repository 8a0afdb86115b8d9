{{/* The image of a program: include "netweft.image" (list $ "operator"); with a tag of its own: (list $ "bird" "1.0"). */}}
{{- define "netweft.image" -}}
{{- $root := index . 0 -}}
{{- with $root.Values.image -}}
{{- if not .repository }}
{{- fail "image.repository is empty, and no images of netweft are published: build them (see Dockerfile), push them to a registry that the nodes reach, and say where they are, for example with --set image.registry=registry.example.org,image.repository=netweft" }}
{{- end -}}
{{- $tag := .tag | default $root.Chart.AppVersion -}}
{{- if gt (len $) 2 }}{{ $tag = index $ 2 }}{{ end -}}
{{- $name := printf "%s/%s:%s" .repository (index $ 1) $tag -}}
{{- if .registry }}{{ .registry }}/{{ end }}{{ $name }}
{{- end -}}
{{- end -}}

{{/* Labels of all objects of a component: include "netweft.labels" (list $ "operator"). */}}
{{- define "netweft.labels" -}}
{{ include "netweft.selector" . }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
helm.sh/chart: {{ (index . 0).Chart.Name }}-{{ (index . 0).Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Labels by which a component's pods are found. */}}
{{- define "netweft.selector" -}}
app.kubernetes.io/name: netweft
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* Annotations of objects that running pods have their network by: the end of the release, or of their entry in its values, does not
delete them. Argo CD reads its own annotation only: it prunes and deletes what Helm keeps. */}}
{{- define "netweft.keep" -}}
helm.sh/resource-policy: keep
argocd.argoproj.io/sync-options: Prune=false,Delete=false
{{- end -}}

{{/* Nodes of virtual kubelets, Fargate and KWOK: they have no kernel that an agent could program. */}}
{{- define "netweft.noKernel" -}}
- {key: type, operator: NotIn, values: [virtual-kubelet, kwok]}
- {key: eks.amazonaws.com/compute-type, operator: NotIn, values: [fargate]}
{{- end -}}

{{/* Affinity of the DaemonSets that need a kernel. */}}
{{- define "netweft.kernelAffinity" -}}
affinity:
  nodeAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      nodeSelectorTerms:
        - matchExpressions:
            {{- include "netweft.noKernel" . | nindent 12 }}
{{- end -}}

{{/* The Nodes on which the agent runs, for the operator: a LabelSelector in JSON. */}}
{{- define "netweft.agentNodes" -}}
{{- $expressions := include "netweft.noKernel" . | fromYamlArray -}}
{{- dict "matchLabels" (.Values.agent.nodeSelector | default dict) "matchExpressions" $expressions | toJson -}}
{{- end -}}

{{/* Environment of the programs that speak to the API server. */}}
{{- define "netweft.env" -}}
{{- with .Values.apiServer }}
{{- if .host }}
# Instead of the addresses of the Service "kubernetes".
- name: KUBERNETES_SERVICE_HOST
  value: {{ .host | quote }}
- name: KUBERNETES_SERVICE_PORT
  value: {{ .port | quote }}
{{- end }}
{{- end }}
{{ include "netweft.logEnv" . }}
{{- end -}}

{{/* Environment of all programs. */}}
{{- define "netweft.logEnv" -}}
- name: NETWEFT_LOG
  value: {{ .Values.logging.level | quote }}
- name: NETWEFT_LOG_FORMAT
  value: {{ .Values.logging.format }}
{{- end -}}

{{/* Probes: the kubelet asks from the node itself. */}}
{{- define "netweft.probes" -}}
livenessProbe:
  httpGet:
    host: 127.0.0.1
    port: {{ .port }}
    path: /livez
  initialDelaySeconds: 10
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet:
    host: 127.0.0.1
    port: {{ .port }}
    path: /readyz
  periodSeconds: 2
  timeoutSeconds: 5
{{- end -}}
